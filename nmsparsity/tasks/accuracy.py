"""Accuracy: top-1, top-5 and loss as sums over images, exact across processes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


class Accuracy:
    """Counts right answers; every image weighs the same, whatever its batch or process.

    The counts are integers, summed over all processes before anything is divided. (The published
    code of arXiv 2102.04010 averaged percentages, and reported those of one process.)

    >>> accuracy = Accuracy()
    >>> scores = torch.tensor([[2.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
    >>> accuracy.update(scores, torch.tensor([0, 2]))
    >>> result = accuracy.compute()
    >>> result["top1"], result["top5"], result["images"]
    (50.0, 100.0, 2)
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything counted."""
        self._counts: Tensor | None = None
        self._loss: Tensor | None = None

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Count one batch: scores ``[batch, classes]``, labels ``[batch]``."""
        best = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
        images = torch.tensor(len(labels), device=scores.device)
        counts = torch.stack([best[:, 0].sum(), best.sum(), images])
        # float64 keeps the sum of 50,000 losses exact to all digits shown; MPS has only float32.
        wide = torch.float32 if scores.device.type == "mps" else torch.float64
        loss = functional.cross_entropy(scores.float(), labels, reduction="sum").to(wide)
        self._counts = counts if self._counts is None else self._counts + counts
        self._loss = loss if self._loss is None else self._loss + loss

    def compute(self, add_up: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """Percentages ``top1`` and ``top5``, mean ``loss``, and how many ``images`` were counted.

        Args:
            add_up: sums a tensor over all processes; every process has to call this.

        Raises:
            ValueError: if nothing was counted.
        """
        if self._counts is None or self._loss is None:
            raise ValueError("accuracy of no images: call update() with at least one batch")
        counts, loss = self._counts, self._loss
        if add_up is not None:
            counts, loss = add_up(counts.clone()), add_up(loss.clone())
        top1, top5, images = (int(count) for count in counts)
        return {
            "top1": 100 * top1 / images,
            "top5": 100 * top5 / images,
            "loss": float(loss) / images,
            "images": images,
        }
