"""StepSGD: SGD as detectors are trained with, its learning rate falling in steps or on a cosine."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from nmsparsity.tasks.classification import SGD
from nmsparsity.tasks.schedule import warmup_cosine


@dataclass(frozen=True)
class StepSGD(SGD):
    """SGD with momentum; a linear warm-up, then steps or a cosine to 0.

    Args:
        lr: the peak learning rate; 0.02 goes with 16 images a step.
        momentum: 0 to 1.
        nesterov: look ahead.
        weight_decay: on all parameters, or without those of norms and biases.
        decay_norm_and_bias: whether norms and biases decay too.
        warmup_epochs: epochs until the peak.
        milestones: epochs at which the learning rate is divided by ten; None is a cosine.

    >>> schedule = StepSGD(warmup_epochs=0.5, milestones=[2, 3])
    >>> [round(schedule.share(step, 4, 16), 3) for step in (0, 1, 2, 7, 8, 12)]
    [0.001, 0.5, 1.0, 1.0, 0.1, 0.01]
    """

    lr: float = 0.02
    weight_decay: float = 1e-4
    warmup_epochs: float = 0.0
    milestones: Sequence[float] | None = (8, 11)

    def share(self, step: int, steps_an_epoch: int, total: int) -> float:
        """The share of the peak learning rate at an optimizer step; the warm-up is from 0.001."""
        warmup = round(self.warmup_epochs * steps_an_epoch)
        if step < warmup:
            return 0.001 + 0.999 * step / warmup
        if self.milestones is None:
            return warmup_cosine(step, total, warmup)
        reached = [epoch * steps_an_epoch for epoch in self.milestones]
        return float(0.1 ** bisect_right(reached, step))
