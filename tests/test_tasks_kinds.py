"""Kinds of tasks: chosen before the command line is parsed, imported when asked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader

from nmsparsity import cli
from nmsparsity.tasks import kinds
from nmsparsity.tasks.checkpoint import Checkpoint
from nmsparsity.tasks.kinds.base import Kind
from nmsparsity.tasks.needs import need
from nmsparsity.tasks.run_folder import RunFolder
from nmsparsity.tasks.task import Task
from nmsparsity.tasks.train import prepare
from tests.images import lightning_warnings
from tests.test_tasks_train import words

pytestmark = [*lightning_warnings, pytest.mark.filterwarnings("ignore:.*smaller than the logging")]
ROOT = Path(__file__).parents[1]


class LineData(LightningDataModule):
    """Numbers, and a text that was made from them."""

    def __init__(
        self, size: int = 8, seed: int = 0, attached: Mapping[str, str] | None = None
    ) -> None:
        super().__init__()
        self.size = size
        self.text = (attached or {}).get("words.txt", f"made of {size}")

    def _loader(self) -> DataLoader[torch.Tensor]:
        return DataLoader(torch.ones(4, self.size), batch_size=2)

    train_dataloader = val_dataloader = _loader


class LineTask(Task):
    """A layer that learns to say nothing.

    Args:
        size: inputs.
        text: that belongs to it.
        lr: of SGD.
    """

    def __init__(self, size: int, text: str, lr: float = 0.1) -> None:
        super().__init__()
        self.text, self.lr = text, lr
        self.model = nn.Sequential(nn.Linear(size, 8), nn.Linear(8, 1))

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        return self.model(batch).square().mean()

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        self.counted = {"error": float(self.training_step(batch, index))}
        self.log("val/error", self.counted["error"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr)

    def result(self) -> dict[str, float]:
        return {"error": self.counted["error"]}

    def attachments(self) -> dict[str, str]:
        return {"words.txt": self.text}


LINE = Kind(
    task=LineTask,
    data=LineData,
    links=("size", "text"),
    monitor="val/error",
    mode="min",
    train_help="\nTrain a line.\n",
    evaluate_help="\nEvaluate a line.\n",
    trained=lambda result: f"error {result['error']:.3f}",
    evaluated=lambda counted: f"counted error {counted['error']:.3f}",
)


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind that is listed from here on."""
    monkeypatch.setitem(kinds.KINDS, "line", kinds.Listed("numbers"))
    monkeypatch.setitem(sys.modules, "nmsparsity.tasks.kinds.line", SimpleNamespace(KIND=LINE))


def line_words(folder: Path, *more: str) -> list[str]:
    recipe = {
        "kind": "line",
        "sparsity": {"print_report": False},
        "trainer": {"max_epochs": 3, "accelerator": "cpu", "enable_progress_bar": False},
    }
    (folder / "line.yaml").write_text(yaml.safe_dump(recipe))
    return ["--config", str(folder / "line.yaml"), "--run_dir", str(folder / "run"), *more]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ([], "classification"),
        (["--kind", "a"], "a"),
        (["--kind=a", "--config", "{kind: b}"], "a"),
        (["--config={kind: a}", "--config", "{kind: b}"], "b"),
        (["--config", "{kind: a}", "--config", "{seed: 1}"], "a"),
        (["--config", "nowhere.yaml", "--config", "a: ["], "classification"),
        (["--config"], "classification"),
    ],
)
def test_the_kind_is_found_before_parsing(given: list[str], found: str) -> None:
    assert kinds.named_in(given) == found


def test_every_listed_kind_is_there() -> None:
    for name in kinds.KINDS:
        assert isinstance(kinds.kind(name), Kind)
    with pytest.raises(ValueError, match=r"unknown kind 'clasification'; known: .*did you mean"):
        kinds.kind("clasification")


def test_a_kind_imports_no_other() -> None:
    code = (
        "import sys; from nmsparsity.tasks.kinds import kind; kind('classification'); "
        "print(*sorted(m for m in sys.modules if m.startswith('nmsparsity.tasks.kinds.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [
        f"nmsparsity.tasks.kinds.{name}" for name in ("base", "classification")
    ]


def test_missing_packages_are_named_with_their_extra() -> None:
    with pytest.raises(ValueError, match=r"need nothing_like_it: pip install 'nmsparsity\[more\]'"):
        need("torch", "nothing_like_it", extra="more")


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_help_is_of_the_kind_and_names_all(
    command: str, line: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help", "--kind", "line"])
    said = capsys.readouterr().out
    assert "a line." in said
    assert "--task.lr LR" in said
    assert "--task.model" not in said
    assert "attached" not in said
    for name, its in kinds.KINDS.items():
        assert f"  {name:16s}{its.about}" in said


def test_another_kind_goes_all_the_way(
    line: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, packed = tmp_path / "run", tmp_path / "line.safetensors"
    assert cli.main(["train", *line_words(tmp_path, "--data.size", "16")]) == 0
    assert capsys.readouterr().out.startswith("error 0.")
    assert (run / "words.txt").read_text() == "made of 16"
    assert yaml.safe_load((run / "config.yaml").read_text())["kind"] == "line"
    # The text comes from the file, whatever the data would make of its settings.
    assert cli.main(["pack", str(run), "-o", str(packed)]) == 0
    for file in (run, packed):
        assert Checkpoint.read(file).attachments == {"words.txt": "made of 16"}
        assert cli.main(["evaluate", str(file), "--trainer.enable_progress_bar", "false"]) == 0
        assert "counted error" in capsys.readouterr().out


def test_what_is_attached_comes_back(line: None, tmp_path: Path) -> None:
    first = prepare(line_words(tmp_path))
    first.data.text = first.task.text = "an old one"
    first.fit()
    more = prepare(line_words(tmp_path, "--ckpt_path", "last", "--trainer.max_epochs", "4"))
    assert more.task.text == "an old one"


def test_the_smallest_may_be_the_best(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, {}, "val/error", "min")
    saved: list[Path] = []
    for score in (3.0, 2.0, 2.5, 1.0):
        trainer = SimpleNamespace(
            callback_metrics={"val/error": torch.tensor(score)}, save_checkpoint=saved.append
        )
        folder.on_train_epoch_end(trainer, None)
    assert saved == [folder.best, folder.last, folder.best, *[folder.last] * 2, *saved[-2:]]
    assert saved[-2:] == [folder.best, folder.last]
    assert folder.state_dict() == {"best": 1.0}


def test_the_default_kind_leaves_old_run_folders_valid(tmp_path: Path) -> None:
    prepare(words(tmp_path)).fit()
    assert "kind" not in yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert prepare(words(tmp_path, "--kind", "classification")).finished is not None
