"""ClassificationTask: a classifier, its loss, its optimizer and its metrics, for Lightning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nmsparsity.tasks.accuracy import Accuracy
from nmsparsity.tasks.memory_format import memory_format
from nmsparsity.tasks.models import classifier
from nmsparsity.tasks.schedule import warmup_cosine
from nmsparsity.tasks.task import Task


@dataclass(frozen=True)
class SGD:
    """SGD with momentum, a linear warm-up from 0 and a cosine to 0, per step.

    Args:
        lr: the peak learning rate.
        momentum: 0 to 1.
        nesterov: look ahead (the paper does not).
        weight_decay: on all parameters, or without those of norms and biases.
        decay_norm_and_bias: whether norms and biases decay too (in the paper they do).
        warmup_epochs: epochs until the peak.
    """

    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-5
    decay_norm_and_bias: bool = True
    warmup_epochs: float = 5.0

    def build(self, model: nn.Module) -> torch.optim.SGD:
        """The optimizer of a model's parameters."""
        matrices = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
        vectors = [p for p in model.parameters() if p.requires_grad and p.dim() <= 1]
        decay = self.weight_decay if self.decay_norm_and_bias else 0.0
        groups = [
            {"params": matrices, "weight_decay": self.weight_decay},
            {"params": vectors, "weight_decay": decay},
        ]
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)

    def share(self, step: int, steps_an_epoch: int, total: int) -> float:
        """The share of the peak learning rate at an optimizer step of ``total``."""
        return warmup_cosine(step, total, round(self.warmup_epochs * steps_an_epoch))


class ClassificationTask(Task):
    """Trains a classifier with cross entropy and counts its answers on the whole validation set.

    Logs ``train/loss``, ``val/top1``, ``val/top5``, ``val/loss`` and ``val/best_top1``, in percent,
    over all images of all processes.

    Args:
        model: a small ResNet (``small_resnet8``, 14, 20, 32, 56), a torchvision classifier
            (``resnet50``), a timm one (``timm/vit_small_patch16_224``), or a function of yours
            (``package.module:function``).
        model_options: the classifier's own arguments, such as ``width``.
        classes: how many classes; taken from the data by the command line.
        in_channels: 3 for colour, 1 for grey images; taken from the data likewise.
        optimizer: SGD and its schedule.
        label_smoothing: share of the target spread over all classes (0 in the paper).
        channels_last: keep images and weights in channels-last memory: faster convolutions; left
            out where that is not safe (`memory_format`).
        init_from: a checkpoint, packed file or run folder whose weights to start from.

    Attributes:
        counted: ``top1``, ``top5``, ``loss`` and ``images`` of the last validation.
        best_top1: the largest ``top1`` of all epochs.
    """

    def __init__(
        self,
        model: str = "resnet50",
        model_options: dict[str, Any] | None = None,
        classes: int = 1000,
        in_channels: int = 3,
        optimizer: SGD = SGD(),
        label_smoothing: float = 0.0,
        channels_last: bool = True,
        init_from: str | None = None,
    ) -> None:
        super().__init__(init_from)
        network = classifier(model, classes, in_channels, **(model_options or {}))
        self.memory_format, self.note = memory_format(network, channels_last)
        self.model = network.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.optimizer = optimizer
        self.label_smoothing = label_smoothing
        self.best_top1 = 0.0
        self.accuracy = Accuracy()

    def forward(self, images: Tensor) -> Tensor:
        """Class scores ``[batch, classes]`` of images ``[batch, channels, height, width]``."""
        scores: Tensor = self.model(images.contiguous(memory_format=self.memory_format))
        return scores

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        images, labels = batch
        loss = functional.cross_entropy(self(images), labels, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, on_step=True, on_epoch=False, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        images, labels = batch
        self.accuracy.update(self(images), labels)

    def on_validation_epoch_start(self) -> None:
        self.accuracy.reset()

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        self.counted = self.accuracy.compute(self._add_up)
        logged = dict(self.counted)
        if self.trainer.state.fn == "fit":
            self.best_top1 = max(self.best_top1, self.counted["top1"])
            logged["best_top1"] = self.best_top1
        for name, value in logged.items():
            self.log(f"val/{name}", float(value), prog_bar=name == "top1", sync_dist=True)

    def result(self) -> dict[str, Any]:
        return {**self.counted, "best_top1": self.best_top1}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["best_top1"] = self.best_top1

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.best_top1 = checkpoint.get("best_top1", 0.0)
