"""RunFolder: what a training leaves on disk, and how it goes on after an interruption."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from nmsparsity.tasks.task import Task


class RunFolder(Checkpoint):
    """A folder of one training: its configuration, ``last.ckpt``, ``best.ckpt``, its result.

    The same training started again goes on after the last checkpoint; another configuration in
    the same folder is refused. Checkpoints are written after every epoch, and in the middle of one
    on SIGTERM, which schedulers send before they kill.

    Args:
        path: the folder, made when the training starts.
        config: the resolved configuration; it travels in every checkpoint.
        monitor: the logged metric that makes the best epoch,
        mode: by its largest or its smallest value.
    """

    def __init__(
        self,
        path: str | Path,
        config: Mapping[str, Any],
        monitor: str = "val/top1",
        mode: Literal["max", "min"] = "max",
    ) -> None:
        self.path = Path(path)
        self.config = dict(config)
        self.monitor = monitor
        self._sign = 1 if mode == "max" else -1
        self._best = float("-inf") * self._sign

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.path / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch."""
        return self.path / "best.ckpt"

    def result(self) -> dict[str, Any] | None:
        """The result of a finished training, else None.

        Raises:
            ValueError: if its file is damaged.
        """
        file = self.path / "result.json"
        if not file.exists():
            return None
        return _mapping(file, json.loads, "delete it to go on from the last checkpoint")

    def resume(self) -> Path | None:
        """The checkpoint to go on from; None to start at the beginning.

        Raises:
            ValueError: if the folder holds a training of another configuration, or is damaged.
        """
        file = self.path / "config.yaml"
        if not file.exists() or not self.last.exists():
            return None
        there = _mapping(file, yaml.safe_load, "delete it to go on with the settings given here")
        different = sorted(differences(there, self.config))
        if different:
            raise ValueError(
                f"{self.path} holds a run with other settings ({'; '.join(different[:5])}); "
                "choose another --run_dir, or go on regardless with --ckpt_path last"
            )
        check_whole(self.last)
        return self.last

    @rank_zero_only
    def write_config(self, attachments: Mapping[str, str] | None = None) -> None:
        """Write the resolved configuration, and texts beside it, by file name."""
        self.path.mkdir(parents=True, exist_ok=True)
        _replace(self.path / "config.yaml", yaml.safe_dump(self.config, sort_keys=False))
        for name, text in (attachments or {}).items():
            _replace(self.path / name, text)

    @rank_zero_only
    def write_result(self, result: Mapping[str, Any]) -> None:
        """Mark the training as finished; JSON has no infinity: such numbers become null."""
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in result.items()
        }
        _replace(self.path / "result.json", json.dumps(finite, indent=1, allow_nan=False))

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let the configuration travel along: the checkpoint explains itself."""
        checkpoint["config"] = yaml.safe_dump(self.config, sort_keys=False)
        if isinstance(module, Task) and (texts := module.attachments()):
            checkpoint["attachments"] = texts

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write ``last.ckpt``, and ``best.ckpt`` if this epoch is the best so far."""
        score = float(trainer.callback_metrics.get(self.monitor, self._best))
        better = score * self._sign > self._best * self._sign
        if better:
            self._best = score
            trainer.save_checkpoint(self.best)
        trainer.save_checkpoint(self.last)

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        """Save when told to stop in the middle of an epoch.

        Not in the middle of a validation, whose counts would be lost; and not after any other
        exception, which may have left half a step behind.
        """
        if isinstance(exception, SIGTERMException) and trainer.training:
            trainer.save_checkpoint(self.last)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"best": self._best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self._best = state["best"]


def check_whole(path: Path) -> None:
    """Refuse a checkpoint that was cut short, by a full disk or a power cut.

    Raises:
        ValueError: naming it.
    """
    if path.is_file() and not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path}: no whole checkpoint ({path.stat().st_size:,} bytes): it was cut short; "
            "delete it to start from the beginning, or go on from another with --ckpt_path FILE"
        )


def _mapping(file: Path, parse: Callable[[str], Any], remedy: str) -> dict[str, Any]:
    """A file of named values, parsed."""
    try:
        content = parse(file.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: empty or damaged; {remedy}")
    return content


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Every setting that differs, as ``"data.batch_size: 128 there, 64 here"``.

    >>> differences({"data": {"seed": 1}}, {"data": {"seed": 2}})
    ['data.seed: 1 there, 2 here']
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            line
            for key in {**old, **new}
            for line in differences(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
        ]
    return [] if old == new else [f"{where}: {old} there, {new} here"]


def _replace(path: Path, text: str) -> None:
    """Write beside and rename: never half a file."""
    beside = path.with_suffix(".tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
