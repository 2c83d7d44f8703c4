"""The command line as its help describes it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from nmsparsity import cli
from tests.images import lightning_warnings, pictures, write_idx_set, write_parquet
from tests.test_tasks_train import words

pytestmark = lightning_warnings
ROOT = Path(__file__).parents[1]
TINY = ["--trainer.enable_progress_bar", "false"]


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from nmsparsity.cli import main; main(['--help']); "
        "print([m for m in ('torch', 'lightning', 'jsonargparse', 'numpy') if m in sys.modules])"
    )
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert time.perf_counter() - began < 5
    assert done.stdout.rstrip().endswith("[]")
    for command in cli.COMMANDS:
        assert f"\n  {command} " in done.stdout


def test_every_recipe_named_in_the_help_exists() -> None:
    from nmsparsity.tasks.kinds.classification import EVALUATE, TRAIN

    named = {
        word
        for text in (cli.HELP, TRAIN, EVALUATE)
        for word in text.split()
        if word.startswith("recipes/")
    }
    assert len(named) >= 3
    for recipe in named:
        assert (ROOT / recipe).exists(), recipe


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_help_shows_every_field_with_its_documentation(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for field, about in {
        "--task.optimizer.weight_decay": "on all parameters",
        "--task.init_from": "whose weights to start from",
        "--data.held_out": "to choose hyperparameters without the test set",
        "--data.lighting": "PCA lighting",
        "--trainer.max_epochs": "number of epochs",
    }.items():
        assert field in said
        assert about in said
    if command == "train":
        assert '--sparsity.pattern PATTERN ``"N:M"``' in said
        assert "nmsparsity train --config recipes/classification/fashion_mnist_2of4.yaml" in said
    assert ":func:" not in said.split("--trainer.accelerator")[0]


def test_the_tour(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_idx_set(tmp_path / "set")
    run, packed = tmp_path / "run", tmp_path / "model.safetensors"
    assert cli.main(["train", *words(tmp_path)]) == 0
    trained = capsys.readouterr().out
    assert "density 0.5" in trained
    for file in (run, run / "last.ckpt"):
        assert cli.main(["evaluate", str(file), *TINY]) == 0
    of_best, of_last = capsys.readouterr().out.splitlines()
    best = trained.split("(best ")[1].split(" %")[0]
    assert of_best.startswith(f"top-1 {best} ±")
    assert of_last.startswith(f"top-1 {trained.split('top-1 ')[1].split(' %')[0]} ±")
    assert cli.main(["pack", str(run), "-o", str(packed)]) == 0
    assert f"{packed.stat().st_size:,} bytes" in capsys.readouterr().out
    assert cli.main(["inspect", str(packed)]) == 0
    table = capsys.readouterr().out
    assert "8 of 10 weights are N:M" in table
    assert "seen from its zeros" not in table
    assert cli.main(["evaluate", str(packed), *TINY]) == 0
    assert capsys.readouterr().out.strip() == of_best.strip()


def test_inspect_of_anyones_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(nn.Linear(4, 4).state_dict(), tmp_path / "file.pt")
    assert cli.main(["inspect", str(tmp_path / "file.pt")]) == 0
    assert "0 of 1 weights are N:M; 100.0% of 16 elements" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["inspect", "nothing.pt"], "nothing.pt: no such checkpoint"),
        (["pack", "nothing.pt", "-o", "x"], "nothing.pt: no such checkpoint"),
        (["evaluate", "nothing.pt"], "nothing.pt: no such checkpoint"),
        (["train"], "give --config RECIPE"),
        (["train", "--name", "x", "--data.root", "/nowhere"], "nothing at /nowhere/cifar10"),
        (["train", "--name", "x", "--ckpt_path", "last"], "--ckpt_path last: there is no"),
    ],
)
def test_mistakes_are_one_line(
    command: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("--sparsity.pattern", "2-4", "pattern '2-4': want 'N:M'"),
        ("--sparsity.method", "srste", "did you mean 'sr_ste'"),
        ("--sparsity.exclude", '["*layer9*"]', "matches no layer"),
        ("--task.model", "resnet51", "did you mean 'resnet50'"),
        ("--data.batch_size", "1000", "more than the 96 images"),
        ("--data.batch_size", "0", "batch_size 0: want 1 or more"),
        ("--data.batch_size", "-4", "batch_size -4: want 1 or more"),
        ("--data.padding", "-3", "padding -3: want 0 or more"),
        ("--data.image_size", "32", "leave --data.image_size unset"),
        ("--task.model_options.foo", "1", "'small_resnet8' with model_options {'width': 8, 'foo'"),
        ("--task.model", "my.mod:f", "model 'my.mod:f': No module named 'my'; want 'package.mod"),
        ("--task.model", "math:f", "want 'package.module:function' on the Python path"),
    ],
)
def test_wrong_values_say_the_remedy(
    field: str, value: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *words(tmp_path, field, value)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_an_unknown_field_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", *words(tmp_path, "--sparsity.patern", "2:4")])
    assert stopped.value.code == 2
    assert "sparsity.patern" in capsys.readouterr().err


def test_evaluate_needs_to_know_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(nn.Linear(4, 4).state_dict(), tmp_path / "file.pt")
    assert cli.main(["evaluate", str(tmp_path / "file.pt")]) == 2
    assert "its model and data are unknown" in capsys.readouterr().err


def one_line(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """The line on stderr of a command that fails."""
    capsys.readouterr()
    assert cli.main(list(command)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_run_evaluated_with_something_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *words(tmp_path)]) == 0
    run = str(tmp_path / "run")
    line = one_line(capsys, "evaluate", run, *TINY, "--task.model", "small_resnet14")
    assert "best.ckpt: the weights do not fit this SmallResNet: " in line
    assert "' is missing in the file" in line
    for split, seed in (("train", 0), ("test", 1)):
        write_parquet(tmp_path / "colour", split, *pictures(24, 8, 3, seed=seed))
    line = one_line(capsys, "evaluate", run, *TINY, "--data.source", "colour")
    assert "in the file, [" in line


def test_a_run_folder_with_damaged_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, run = ["train", *words(tmp_path)], tmp_path / "run"
    assert cli.main(command) == 0
    (run / "result.json").write_text("")
    assert f"{run / 'result.json'}: empty or damaged; delete it" in one_line(capsys, *command)
    (run / "result.json").unlink()
    whole = (run / "last.ckpt").read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        (run / "last.ckpt").write_bytes(whole[:length])
        line = one_line(capsys, *command)
        assert f"{run / 'last.ckpt'}: no whole checkpoint ({length:,} bytes)" in line
        assert "no whole checkpoint" in one_line(capsys, *command, "--ckpt_path", "last")
        line = one_line(capsys, "inspect", str(run / "last.ckpt"))
        assert f"{run / 'last.ckpt'}: no checkpoint that torch can read" in line
    (run / "config.yaml").write_text("")
    line = one_line(capsys, *command)
    assert line.endswith(
        f"{run / 'config.yaml'}: empty or damaged; delete it to go on with the settings given here"
    )


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = one_line(capsys, "inspect", str(tmp_path))
    assert f"{tmp_path}: a folder without best.ckpt: no run, or one" in line
    (tmp_path / "last.ckpt").touch()
    line = one_line(capsys, "inspect", str(tmp_path))
    assert f"a run without a validation so far, and so without a best.ckpt; give {tmp_path}" in line


def test_a_packed_file_needs_no_suffix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(nn.Linear(4, 4).state_dict(), tmp_path / "file.pt")
    assert cli.main(["pack", str(tmp_path / "file.pt"), "-o", str(tmp_path / "packed")]) == 0
    assert cli.main(["inspect", str(tmp_path / "packed")]) == 0
    assert "0 of 1 weights" in capsys.readouterr().out


@pytest.mark.parametrize("config", [{"a": 1}, "x", "task: 3", "a: [", "task: {model: x}", 7])
def test_a_configuration_of_others_is_not_taken_for_ours(
    config: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": nn.Linear(4, 4).state_dict(), "config": config}, tmp_path / "file.pt")
    assert cli.main(["inspect", str(tmp_path / "file.pt")]) == 0
    assert "weight " in capsys.readouterr().out
    line = one_line(capsys, "evaluate", str(tmp_path / "file.pt"))
    assert "its model and data are unknown" in line
