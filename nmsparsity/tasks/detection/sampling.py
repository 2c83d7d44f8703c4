"""SeededSampler: which anchors and proposals are trained on, repeatable image by image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nmsparsity.tasks.batches import generator


class SeededSampler:
    """Draws positives and negatives of every image from a generator of its own.

    In the place of torchvision's ``BalancedPositiveNegativeSampler``, which draws from the global
    generator: a training that goes on from a checkpoint, or on another number of processes, then
    draws the same.

    Args:
        batch_size: how many to draw from an image.
        positive_fraction: the largest share of positives.

    Attributes:
        keys: for every image of the coming batch, numbers that the draws depend on.

    >>> sampler = SeededSampler(4, 0.5)
    >>> sampler.keys = [(0, 1)]
    >>> positive, negative = sampler([torch.tensor([1, 0, -1, 2, 0, 3, 0])])
    >>> int(positive[0].sum()), int(negative[0].sum())
    (2, 2)
    """

    def __init__(self, batch_size: int, positive_fraction: float) -> None:
        self.batch_size, self.positive_fraction = batch_size, positive_fraction
        self.keys: Sequence[tuple[int, ...]] = ()

    def __call__(self, matched: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks of the drawn positives and negatives.

        Args:
            matched: for every image ``[candidates]``: above 0 positive, 0 negative, below 0
                neither.
        """
        if len(self.keys) != len(matched):
            raise ValueError(f"{len(self.keys)} keys for {len(matched)} images; set sampler.keys")
        drawn = [self._draw(m, key) for m, key in zip(matched, self.keys, strict=True)]
        return [positive for positive, _ in drawn], [negative for _, negative in drawn]

    def _draw(self, matched: Tensor, key: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        draws = generator(*key)
        most = int(self.batch_size * self.positive_fraction)
        positive = _some(matched >= 1, most, draws)
        negative = _some(matched == 0, self.batch_size - int(positive.sum()), draws)
        return positive, negative


def _some(among: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """A mask of ``count`` random ones of those that are true, or of all."""
    index = among.nonzero().flatten()
    chosen = index[torch.randperm(len(index), generator=draws)[:count].to(index.device)]
    out = torch.zeros_like(among)
    out[chosen] = True
    return out
