"""Task: a network, its loss and its metrics; what every kind of task has."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from nmsparsity.tasks.checkpoint import Checkpoint
from nmsparsity.tasks.schedule import planned_steps


class Optimizing(Protocol):
    """The settings of an optimizer and its schedule."""

    def build(self, model: nn.Module) -> Optimizer:
        """The optimizer of a model's parameters."""

    def share(self, step: int, steps_an_epoch: int, total: int) -> float:
        """The share of the peak learning rate at an optimizer step of ``total``."""


class Task(LightningModule):
    """A LightningModule that counts its answers on the whole validation set.

    Precision, clipping, accumulation and devices are the Trainer's; sparsity is the
    `SparsityCallback`'s.

    Args:
        init_from: a checkpoint, packed file or run folder whose weights to start from.

    Attributes:
        model: the network; its weights are what files hold.
        optimizer: trains it; its learning rate changes at every step.
        counted: the metrics of the last validation, over all processes.
        folder: where to write more than metrics; None: nowhere.
        note: said when a training starts.
    """

    model: nn.Module
    optimizer: Optimizing

    def __init__(self, init_from: str | None = None) -> None:
        super().__init__()
        self.init_from = init_from
        self.counted: dict[str, Any] = {}
        self.folder: Path | None = None
        self.note = ""
        self._accumulating = False
        self._gradients: dict[str, Tensor] = {}

    def setup(self, stage: str) -> None:
        """Load ``init_from`` once, before sparsity sets in and before a resume overwrites it."""
        if stage == "fit" and self.note and self.trainer.is_global_zero:
            print(self.note)
        if stage == "fit" and self.init_from:
            start = Checkpoint.read(self.init_from)
            self.check_start(start)
            start.load_into(self.model)

    def check_start(self, start: Checkpoint) -> None:
        """Refuse to start from weights that mean something else here; no reason by default.

        Raises:
            ValueError: with the reason.
        """
        return None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer.build(self.model)
        scheduler = LambdaLR(optimizer, self._share_of_lr)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _share_of_lr(self, step: int) -> float:
        # Before the data is open the training has no length; that is asked for step 0 alone.
        steps, total = planned_steps(self.trainer) or (2**30, 2**30)
        return self.optimizer.share(step, steps, total)

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """What a finished training says about its validations."""

    def finish(self, trainer: Trainer, data: LightningDataModule) -> None:
        """What is left to do after the fit, before the result is asked for; nothing by default."""
        return None

    def attachments(self) -> dict[str, str]:
        """Texts without which the weights are of no use, by file name; none by default.

        They are written into the run folder, travel in every checkpoint and packed file, and come
        back as the argument ``attached`` of task and data, where these have one.
        """
        return {}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Notice whether an optimizer step is half way through its accumulated batches."""
        self._accumulating = not self._ends_step(batch_idx)

    def _ends_step(self, batch_idx: int) -> bool:
        """Whether this batch is the last of its optimizer step."""
        done = batch_idx + 1
        last = done == self.trainer.num_training_batches
        return last or done % self.trainer.accumulate_grad_batches == 0

    def on_train_start(self) -> None:
        """Go on with the gradients of a step that was interrupted half way."""
        own = dict(self.named_parameters())
        for name, gradient in self._gradients.items():
            own[name].grad = gradient.to(own[name].device)
        self._gradients = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["counted"] = self.counted
        if self._accumulating:
            # Every process has its own; the next step averages them all the same.
            checkpoint["gradients"] = {
                name: self.trainer.strategy.reduce(p.grad.clone(), reduce_op="mean")
                for name, p in self.named_parameters()
                if p.grad is not None
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.counted = checkpoint.get("counted", {})
        self._gradients = checkpoint.get("gradients", {})

    def _add_up(self, counts: Tensor) -> Tensor:
        """The sum over all processes; every one of them has to ask for it."""
        total: Tensor = self.trainer.strategy.reduce(counts, reduce_op="sum")
        return total
