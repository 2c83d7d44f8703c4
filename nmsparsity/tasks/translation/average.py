"""AverageDense: the average of the last epochs' dense weights, made N:M again."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from nmsparsity.integrations.lightning import SparsityCallback
from nmsparsity.sparsifier import Sparsifier
from nmsparsity.tasks.schedule import planned_epochs
from nmsparsity.tasks.task import Task

AVERAGED = "averaged.ckpt"


class AverageDense(Callback):
    """Averages the weights after each of the last epochs and writes ``averaged.ckpt``.

    An average of N:M weights is not N:M. So dense weights are averaged, and the average is
    projected by the sparsifier, as its method does it. The running sum travels in the checkpoints.

    Args:
        epochs: how many, counted from the end of the training.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Add the epoch's dense weights, if it is one of the last."""
        planned = planned_epochs(trainer)
        if trainer.current_epoch < planned - self.epochs:
            self._sums, self._count = {}, 0
            return
        self._count += 1
        for name, value in _dense(trainer, module).items():
            self._sums[name] = value + self._sums[name] if name in self._sums else value

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write the checkpoint, beside and as the last one but for the weights."""
        if not self._count or not isinstance(module, Task) or module.folder is None:
            return
        if trainer.is_global_zero:
            _write(module.folder, self.averaged(trainer, module).state_dict())
        trainer.strategy.barrier()

    def averaged(self, trainer: Trainer, module: Task) -> nn.Module:
        """A copy of the module's network with the average, N:M as the sparsifier keeps it."""
        holder = nn.Module()
        holder.model = copy.deepcopy(module.model)
        own = holder.model.state_dict()
        for name, total in self._sums.items():
            own[name].copy_((total / self._count).to(own[name].dtype))
        sparsifier = _sparsifier(trainer)
        if sparsifier is not None and sparsifier.weights():
            sparsifier.project_(holder)
        return holder.model

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"sums": self._sums, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self._sums, self._count = dict(state["sums"]), state["count"]


def _sparsifier(trainer: Trainer) -> Sparsifier | None:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    found = (its.sparsifier for its in callbacks if isinstance(its, SparsityCallback))
    return next(found, None)


def _dense(trainer: Trainer, module: LightningModule) -> dict[str, Tensor]:
    """A copy of the network's weights, dense ones where they are kept sparse; once if tied."""
    model: Any = module.model
    sparsifier = _sparsifier(trainer)
    if sparsifier is None or not sparsifier.weights():
        return _copied(model)
    with sparsifier.dense_weights():
        return _copied(model)


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: value.detach().cpu().float().clone()
        for name, value in model.named_parameters()
        if value.is_floating_point()
    }


def _write(folder: Path, weights: dict[str, Tensor]) -> None:
    content = torch.load(folder / "last.ckpt", map_location="cpu", weights_only=True)
    content["state_dict"] = {f"model.{name}": value.cpu() for name, value in weights.items()}
    for key in ("optimizer_states", "lr_schedulers", "loops", "gradients"):
        content.pop(key, None)
    content["callbacks"] = {
        name: state for name, state in content["callbacks"].items() if "SparsityCallback" in name
    }
    beside = (folder / AVERAGED).with_suffix(".tmp")
    torch.save(content, beside)
    os.replace(beside, folder / AVERAGED)
