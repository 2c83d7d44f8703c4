"""idx files: what is written is read, what is damaged is refused."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nmsparsity.tasks.idx import read_idx, write_idx


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=4), zipped=st.booleans())
def test_round_trip(tmp_path: Path, shape: list[int], zipped: bool) -> None:
    values = torch.randint(0, 256, shape, dtype=torch.uint8)
    path = tmp_path / ("values.gz" if zipped else "values")
    write_idx(values, path)
    assert torch.equal(read_idx(path), values)


def test_bytes_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"\0\0\x08\x02" + b"\0\0\0\x02" + b"\0\0\0\x03" + bytes(range(6)))
    assert read_idx(file).tolist() == [[0, 1, 2], [3, 4, 5]]
    write_idx(read_idx(file), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not an idx file"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "not an idx file of uint8"),
        (b"\0\0\x08\x01\0\0\0\x03ab", "2 values where shape .3. needs 3"),
        (b"\0\0\x08\x01\0\0\0\x01ab", "2 values where"),
    ],
)
def test_damaged(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_idx(file)


def test_only_uint8_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"want uint8 values, got torch\.int64"):
        write_idx(torch.zeros(2, dtype=torch.int64), tmp_path / "file")
