"""``nmsparsity bench``: every kind of MODEL, what is written, what is said to mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from nmsparsity import cli
from nmsparsity.bench.subject import subject
from tests.images import lightning_warnings, write_idx_set
from tests.test_tasks_train import words

pytestmark = lightning_warnings
QUICK = ["--against", "torch", "--rounds", "1", "--threads", "1"]
MODULE = """
import torch
from torch import nn
def alone():
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
def pair():
    return alone(), {"input": torch.ones(3, 8)}
def number():
    return 3
def wrong():
    raise ValueError("want 7, got 8")
"""


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "bench_mine.py").write_text(MODULE)


def test_what_was_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_idx_set(tmp_path / "set")
    run, packed = tmp_path / "run", tmp_path / "model.safetensors"
    assert cli.main(["train", *words(tmp_path)]) == 0
    assert cli.main(["pack", str(run), "-o", str(packed)]) == 0
    capsys.readouterr()
    for file in (run, run / "last.ckpt", packed):
        found = subject(str(file))
        assert found.shape == (1, 8, 8)
        assert found.batch(2).shape == (2, 1, 8, 8)
        assert cli.main(["bench", str(file), *QUICK, "--batch", "2", "--backend", "native"]) == 0
        said = capsys.readouterr().out
        assert f"small_resnet8 of {file}, batch 2: 1 turns each, 1 thread(s)" in said
        assert "8 of 10 weights are packed" in said
    best = torch.load(run / "best.ckpt", weights_only=True)["state_dict"]
    weight = subject(str(packed)).model.state_dict()["fc.weight"]
    assert torch.equal(weight, best["model.fc.weight"])


def test_where_the_data_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_idx_set(tmp_path / "set")
    assert cli.main(["train", *words(tmp_path)]) == 0
    (tmp_path / "set").rename(tmp_path / "away")
    capsys.readouterr()
    assert cli.main(["bench", str(tmp_path / "run"), *QUICK]) == 2
    said = capsys.readouterr().err
    assert "cannot be read here; give --input, such as --input 1x32x32" in said
    assert subject(str(tmp_path / "run"), (1, 8, 8)).shape == (1, 8, 8)


def test_names_and_functions(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert subject("resnet18").shape == (3, 224, 224)
    assert subject("timm/test_vit").shape == (3, 160, 160)
    assert not subject("small_resnet8", (3, 9, 9)).model.training
    assert cli.main(["bench", "bench_mine:pair", *QUICK, "--pattern", "2:4"]) == 0
    assert "bench_mine:pair, batch 3" in capsys.readouterr().out
    files = ["--json", "found.json", "--plot", "found.png"]
    command = ["bench_mine:alone", "--input", "8", *QUICK, "--batch", "1", "4", "--pattern", "2:4"]
    assert cli.main(["bench", *command, "1:8", *files]) == 0
    said = json.loads(Path("found.json").read_text())
    assert [one["batch"] for one in said["found"]] == [1, 4]
    assert [row["name"] for row in said["found"][0]["rows"]] == ["torch", "2:4", "1:8"]
    assert said["found"][0]["layers"]["1:8"][0]["layer"] == "0"
    assert said["command"].startswith("nmsparsity bench bench_mine:alone --input 8")
    assert {"machine", "versions", "date"} < said.keys()
    assert Path("found.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(("-found.json", ".tmp"))]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["nothing/here"], "nothing/here: no such file or run folder"),
        (["nothing.safetensors"], "nothing.safetensors: no such file"),
        (["resnet51"], "did you mean 'resnet"),
        (["bench_mine:nothing"], "want 'package.module:function' on the Python path"),
        (
            ["bench_mine:alone", "--input", "7", "--pattern", "2:4", *QUICK],
            "this Sequential cannot run inputs of shapes [[1, 7]]: RuntimeError: mat1 and mat2",
        ),
        (["bench_mine:pair", "--plot", "x.xyz"], "x.xyz: want a file that ends in .png, .svg"),
        (["bench_mine:wrong"], "nmsparsity bench: want 7, got 8\n"),
        (["bench_mine:number", "--input", "8"], "want a torch.nn.Module or a pair"),
        (["bench_mine:alone"], "came without inputs: give --input"),
        (["bench_mine:pair", "--batch", "4"], "came with its own inputs"),
        (["bench_mine:pair"], "or give a pattern to prune copies to"),
        (["bench_mine:pair", "--against", "onx"], "unknown engine 'onx'"),
        (["bench_mine:pair", "--json", "nowhere/x"], "nowhere/x: there is no folder nowhere"),
    ],
)
def test_mistakes_are_one_line(
    command: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", *command]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_foreign_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(nn.Linear(4, 4).state_dict(), tmp_path / "file.pt")
    assert cli.main(["bench", str(tmp_path / "file.pt")]) == 2
    assert "does not say which classifier" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("--batch", "0"), ("--input", "3x-1")])
def test_wrong_numbers(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["bench", "resnet18", option, value])
    assert f"{value!r}: want" in capsys.readouterr().err
