"""History: every logged number of every epoch, kept across interruptions."""

from __future__ import annotations

import csv
import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only


class History(Callback):
    """Collects one row per epoch and writes all of them as CSV; travels in the checkpoints.

    A row has ``epoch``, ``step``, whatever was logged (``val/top1``, ``sparsity/sad``, ...; numbers
    of ``val/`` only where the epoch had a validation), and
    ``seconds`` and ``cpu_seconds`` of this process spent on training alone, without validation,
    since the start of the fit. It must come after the callbacks whose numbers it is to see.

    Args:
        path: the CSV file, replaced after every epoch; None writes none.

    Attributes:
        rows: the epochs so far.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.rows: list[dict[str, float]] = []
        self._seconds = self._cpu = 0.0
        self._since: tuple[float, float] | None = None
        self._validated = False

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start the clock."""
        self._validated = False
        self._since = (time.perf_counter(), time.process_time())

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock of an epoch that goes on after an interruption: it has no start."""
        if self._since is None:
            self._since = (time.perf_counter(), time.process_time())

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Stop the clock: what follows is no training."""
        self._stop()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Start the clock again, if there is more of the epoch to come."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._since = (time.perf_counter(), time.process_time())
            self._validated = True

    def _stop(self) -> None:
        self._seconds, self._cpu = self._times()
        self._since = None

    def _times(self) -> tuple[float, float]:
        """Seconds and CPU seconds until now."""
        if self._since is None:
            return self._seconds, self._cpu
        wall, cpu = time.perf_counter() - self._since[0], time.process_time() - self._since[1]
        return self._seconds + wall, self._cpu + cpu

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Add the epoch's row."""
        self._stop()
        # Lightning keeps those of earlier epochs.
        logged = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if self._validated or not name.startswith("val/")
        }
        self.rows.append(
            {
                "epoch": trainer.current_epoch + 1,
                "step": trainer.global_step,
                **logged,
                "seconds": self._seconds,
                "cpu_seconds": self._cpu,
            }
        )
        self._write()

    @rank_zero_only
    def _write(self) -> None:
        if self.path is None:
            return
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        beside = self.path.with_suffix(".tmp")
        with beside.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(beside, self.path)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, in the middle of an epoch too."""
        seconds, cpu = self._times()
        return {"rows": self.rows, "seconds": seconds, "cpu_seconds": cpu}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.rows = list(state["rows"])
        self._seconds, self._cpu = state["seconds"], state["cpu_seconds"]
