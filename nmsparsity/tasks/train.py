"""Training from a configuration: what ``nmsparsity train`` does."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.utilities.exceptions import SIGTERMException

from nmsparsity.integrations.lightning import SparsityCallback
from nmsparsity.tasks.arguments import attach, settings, train_parser
from nmsparsity.tasks.checkpoint import Checkpoint
from nmsparsity.tasks.history import History
from nmsparsity.tasks.kinds import kind, named_in
from nmsparsity.tasks.kinds.base import Kind
from nmsparsity.tasks.run_folder import RunFolder, check_whole
from nmsparsity.tasks.task import Task

STOPPED = 143
"""The exit status of a training that was told to stop by SIGTERM, as shells report it."""


def quiet() -> None:
    """Let Lightning report problems only: no banners, and no warnings about its own code."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*treespec.*", module="lightning")
    # Our metrics are those of all processes already.
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*", module="lightning")


@dataclass
class Run:
    """A training that is ready to start.

    Attributes:
        kind: of task it is.
        folder: where it is written.
        resume: the checkpoint it goes on from, if any.
        finished: the result, if this very training was finished before.
        trying: for a step or two (``fast_dev_run``), and nothing is written.
    """

    kind: Kind
    task: Task
    data: LightningDataModule
    sparsity: SparsityCallback
    history: History
    trainer: Trainer
    folder: RunFolder
    resume: Path | None
    finished: dict[str, Any] | None
    trying: bool

    def fit(self) -> dict[str, Any] | None:
        """Train to the end; the result, which is also written as ``result.json``.

        None if the training was told to stop before: it can go on later. A training that is
        finished already is not done again, its result is returned.
        """
        if self.finished is not None:
            return self.finished
        if not self.trying:
            self.folder.write_config(self.task.attachments())
        resume = None if self.resume is None else str(self.resume)
        try:
            self.trainer.fit(self.task, datamodule=self.data, ckpt_path=resume)
            if self.trainer.interrupted:
                return None
            self.task.finish(self.trainer, self.data)
        except SIGTERMException:
            return None
        except SystemExit:  # So Lightning ends when the user does, by Ctrl-C.
            if self.trainer.interrupted:
                return None
            raise
        result = self.result()
        if not self.trying:
            self.folder.write_result(result)
        return result

    def result(self) -> dict[str, Any]:
        """The task's own metrics, density, SAD, seconds of training."""
        last = self.history.rows[-1] if self.history.rows else {}
        report = self.sparsity.sparsifier.report() if self.sparsity.sparsifier else None
        rows = [row for row in report.rows if not row.repeats] if report else []
        weights = sum(row.size for row in rows)
        kept = sum(row.density * row.size for row in rows)
        return {
            "epochs": self.trainer.current_epoch,
            **self.task.result(),
            "method": self.sparsity.method,
            "pattern": self.sparsity.pattern,
            "density": kept / weights if weights else 1.0,
            "sad": sum(entry["sad"] for entry in self.sparsity.history),
            "seconds": last.get("seconds"),
            "cpu_seconds": last.get("cpu_seconds"),
        }


def prepare(arguments: Sequence[str], callbacks: Sequence[Callback] = ()) -> Run:
    """Parse the arguments and build everything that a training needs.

    Args:
        arguments: as on the command line.
        callbacks: more of them, for the Trainer.

    Raises:
        ValueError: for settings that contradict each other or the run folder.
    """
    name = named_in(arguments)
    parser, its = train_parser(name), kind(name)
    config = parser.parse_args(list(arguments))
    folder = RunFolder(_folder(config), settings(parser, config), its.monitor, its.mode)
    resume = _checkpoint(config, folder)
    finished = folder.result() if config.ckpt_path is None else None
    seed_everything(config.seed, workers=True, verbose=False)
    if resume is not None:
        attach(config, Checkpoint.read(resume).attachments, its)
    built = parser.instantiate(config)
    trying = bool(config.trainer.fast_dev_run)
    history = History(None if trying else folder.path / "history.csv")
    ours = [built.sparsity, history, *([] if trying else [folder]), *callbacks]
    options = {**vars(built.trainer), "callbacks": ours}
    trainer = Trainer(**options, default_root_dir=folder.path)
    _warn_of_slow_bf16(trainer)
    built.task.folder = None if trying else folder.path
    return Run(
        kind=its,
        task=built.task,
        data=built.data,
        sparsity=built.sparsity,
        history=history,
        trainer=trainer,
        folder=folder,
        resume=resume,
        finished=finished,
        trying=trying,
    )


def _folder(config: Namespace) -> Path:
    """``--run_dir``, or else ``runs/<name>/seed<seed>``."""
    if config.run_dir is not None:
        return Path(config.run_dir)
    recipes = [Path(str(path)).stem for path in config.config or () if path is not None]
    name = config.name or "-".join(recipes)
    if not name:
        raise ValueError("no recipe and no name: give --config RECIPE, or --name or --run_dir")
    return Path("runs") / name / f"seed{config.seed}"


def _checkpoint(config: Namespace, folder: RunFolder) -> Path | None:
    if config.ckpt_path is None:
        return folder.resume()
    path = folder.last if config.ckpt_path == "last" else Path(config.ckpt_path)
    if not path.exists():
        raise ValueError(f"--ckpt_path {config.ckpt_path}: there is no {path}")
    check_whole(path)
    return path


def _warn_of_slow_bf16(trainer: Trainer) -> None:
    """Say it where bf16 on a CPU costs time instead of saving it."""
    if "bf16" not in str(trainer.precision) or not isinstance(trainer.accelerator, CPUAccelerator):
        return
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        warnings.warn(
            f"trainer.precision is {trainer.precision!r}, but this CPU has no bf16 instructions: "
            "training can take several times as long as with --trainer.precision 32-true",
            stacklevel=3,
        )
