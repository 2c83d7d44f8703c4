"""The learning rate over training: a linear warm-up, then a cosine or an inverse square root."""

from __future__ import annotations

import math

from lightning.pytorch import Trainer


def warmup_cosine(step: int, total: int, warmup: int) -> float:
    """The share of the peak learning rate at ``step`` of ``total`` optimizer steps.

    Rises linearly from 0 over the first ``warmup`` steps, then falls on half a cosine to 0 at
    ``total`` (arXiv 1608.03983 without restarts).

    >>> [round(warmup_cosine(step, total=10, warmup=2), 2) for step in (0, 1, 2, 6, 10)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if step < warmup:
        return step / warmup
    share = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def warmup_inverse_sqrt(step: int, warmup: int) -> float:
    """The share of the peak learning rate at ``step``.

    Rises linearly from 0 over ``warmup`` steps, then falls with the root of the step (arXiv
    1706.03762, section 5.3).

    >>> [warmup_inverse_sqrt(step, warmup=4) for step in (0, 2, 4, 16)]
    [0.0, 0.5, 1.0, 0.5]
    """
    if step < warmup:
        return step / warmup
    return math.sqrt(max(1, warmup) / max(1, step))


def planned_steps(trainer: Trainer) -> tuple[int, int] | None:
    """Optimizer steps of an epoch and of the whole training; None before the data is open.

    `Trainer.estimated_stepping_batches` would open the data, and Lightning then does not restore
    how far an interrupted epoch had come.
    """
    if trainer.num_training_batches == float("inf"):
        return None
    steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    total = trainer.max_steps if trainer.max_steps > 0 else steps * (trainer.max_epochs or 1)
    return steps, total


def planned_epochs(trainer: Trainer) -> int:
    """How many epochs the training has, a last unfinished one among them."""
    planned = planned_steps(trainer)
    by_steps = math.ceil(planned[1] / planned[0]) if planned and trainer.max_steps > 0 else None
    limits = [n for n in (trainer.max_epochs, by_steps) if n is not None and n > 0]
    return min(limits, default=1)
