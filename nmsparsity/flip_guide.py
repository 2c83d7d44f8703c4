"""A guide to lambda_w: how often masks flip in the warm-up, against those of a dense training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from nmsparsity import masks
from nmsparsity.shards import local_shard
from nmsparsity.targets import Target
from nmsparsity.telemetry import Snapshot

BAND = (0.5, 1.0)


@dataclass(frozen=True)
class VirtualMask:
    """The mask that a weight would have by magnitude as it stands: dense ones have one, too."""

    target: Target

    @torch.no_grad()
    def current_mask(self) -> Tensor:
        weight = local_shard(self.target.site.parameter)
        return masks.mask(weight.abs(), self.target.pattern, self.target.site.layout)


class FlipRate:
    """The mean flip rate over a window of optimizer steps: arXiv 2404.01847.

    The flip rate of a step is the share of all mask elements that it changes. In a sparse training
    it is that of its masks, in a dense one that of the masks its weights would have: the two can be
    compared, at the same steps of the same recipe. Costs a mask of every weight at every step, in
    the window only.

    Args:
        targets: which weights follow which pattern.
        first, last: the flips from step ``first`` on to ``last`` are counted, in optimizer steps.
    """

    def __init__(self, targets: Iterable[Target], first: int, last: int) -> None:
        if not 0 <= first < last:
            raise ValueError(f"flip_steps {first}, {last}: want two step counts, 0 <= first < last")
        self._masks = [VirtualMask(target) for target in targets]
        self.first, self.last = first, last
        self._at: tuple[int, list[Snapshot]] | None = None
        self._flips, self._elements = 0, 0

    def look(self, step: int) -> bool:
        """Look at the weights after so many optimizer steps; whether the window ends here."""
        if not self.first <= step <= self.last or (self._at is not None and self._at[0] == step):
            return False
        now = [Snapshot.of(mask.current_mask()) for mask in self._masks]
        if self._at is not None and self._at[0] == step - 1:
            for before, after in zip(self._at[1], now, strict=True):
                self._flips += before.sad(after)
                self._elements += int(torch.Size(after.shape).numel())
        self._at = None if step == self.last else (step, now)
        return step == self.last

    @property
    def rate(self) -> float | None:
        """Flips per mask element and step, on this process; None before two looks in a row."""
        return self._flips / self._elements if self._elements else None


def judge(rate: float, dense_rate: float, band: tuple[float, float] = BAND) -> str | None:
    """What to do about lambda_w, in a sentence; None where the flip rate is in the band.

    A sparse training flips more often than a dense one where the decay is too weak, and hardly at
    all where it is so strong that masks are frozen from the start. arXiv 2404.01847 picks the decay
    by the ratio of the two flip rates in the warm-up; the band here, half to once the dense rate,
    is ours and a rule of thumb.

    >>> judge(0.002, 0.001)
    'masks flip 2.00 times as often as those of a dense training: the decay is too weak, try 10 \
times as much'
    >>> judge(0.0008, 0.001)
    """
    if dense_rate <= 0:
        return "the masks of the dense training do not flip in these steps: choose later ones"
    ratio = rate / dense_rate
    said = f"masks flip {ratio:.2f} times as often as those of a dense training"
    if ratio > band[1]:
        return f"{said}: the decay is too weak, try 10 times as much"
    if ratio < band[0]:
        return f"{said}: the decay is so strong that masks freeze early, try a tenth"
    return None
