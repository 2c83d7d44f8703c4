"""docs/format.md is complete: its own reader, in plain Python, reads what we write."""

import re
from math import comb
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmsparsity.layout import Layout
from nmsparsity.packed import PackedWeight, write
from nmsparsity.packed.checksum import START
from nmsparsity.packed.codings import CODINGS
from nmsparsity.pattern import Pattern

PAGE = (Path(__file__).parent.parent / "docs" / "format.md").read_text(encoding="utf-8")
READER: dict = {}
exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], READER)

PATTERNS = ["1:1", "1:2", "2:4", "1:4", "3:4", "4:8", "1:5", "2:5", "5:7", "8:16", "16:64", "3:200"]
LAYOUTS = [Layout(), Layout(0), Layout(0, 2)]


def as_bytes(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def sparse(shape, pattern, layout, dtype=torch.float32):
    weight = torch.randn(shape)
    return (weight * pattern.mask(weight.abs(), layout)).to(dtype) + 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", ["input", "kernel"])
@pytest.mark.parametrize("text", PATTERNS)
def test_the_reader_of_the_page_agrees(tmp_path, text, axis, layout):
    torch.manual_seed(0)
    pattern = Pattern.parse(text, axis)
    shapes = [(10, 7), (4, 24), (6, 5, 3), (4, 9, 2, 3)]
    weights = {str(shape): sparse(shape, pattern, layout) for shape in shapes}
    packed = {name: PackedWeight.pack(w, pattern, layout) for name, w in weights.items()}
    write(tmp_path / "x", packed, {"plain": torch.arange(3)})
    found = READER["read"](tmp_path / "x")
    assert found.pop("plain") == ([3], as_bytes(torch.arange(3)))
    assert found == {name: (list(w.shape), as_bytes(w)) for name, w in weights.items()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_reader_of_the_page_reads_every_dtype_and_ties(tmp_path, dtype):
    weight = sparse((6, 20), Pattern(2, 4), Layout(), dtype)
    packed = PackedWeight.pack(weight, Pattern(2, 4))
    write(tmp_path / "x", {"one": packed, "two": packed})
    assert READER["read"](tmp_path / "x") == dict.fromkeys(
        ("one", "two"), ([6, 20], as_bytes(weight))
    )


@settings(deadline=None)
@given(st.data(), st.sampled_from(list(CODINGS)))
def test_the_reader_of_the_page_decodes_every_coding(data, name):
    m = data.draw(st.integers(1, 24))
    n = data.draw(st.integers(1, m))
    groups = data.draw(st.integers(1, 40))
    torch.manual_seed(data.draw(st.integers(0, 2**32)))
    mask = (torch.rand(groups, m).argsort(1) < n).numpy()
    stream = int.from_bytes(CODINGS[name].encode(mask, n).tobytes(), "little")
    for group in range(groups):
        assert READER["decode"](name, stream, group, n, m) == mask[group].nonzero()[0].tolist()


def test_the_numbers_on_the_page_are_true():
    start = re.search(r"^    (\{\"__metadata__.*)$", PAGE, re.MULTILINE)[1]
    assert start.encode() == START
    assert len(START) == 45
    rows = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
    table = {row[0]: row[1:] for row in rows}
    heads = next(line for line in PAGE.splitlines() if line.startswith("| | 1:4")).strip("| ")
    for i, text in enumerate(heads.split(" | ")):
        pattern = Pattern.parse(text)
        fields = CODINGS["combinadic"].fields(pattern.n, pattern.m)
        want = [comb(pattern.m, pattern.n), fields.groups, fields.width]
        assert [int(table[key][i]) for key in ("`C`", "`k` groups", "`b` bits")] == want
