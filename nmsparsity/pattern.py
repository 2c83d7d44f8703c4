"""The N:M pattern: which weights may stay."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from nmsparsity.layout import Layout

Axis = Literal["input", "kernel"]

_TEXT = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*")


@dataclass(frozen=True)
class Pattern:
    """At most ``n`` of every ``m`` consecutive weights are nonzero; ``n`` counts what is *kept*.

    Groups run along the ``axis`` of a weight:

    - ``"input"``: along ``in_features`` or ``in_channels`` at a fixed kernel position, inside one
      convolution group. This is the dimension hardware contracts over, hence the default.
    - ``"kernel"``: along the flattened ``in, height, width`` of one filter, the layout of the
      first results of arXiv 2102.04010. Groups never cross filters.

    Where the axis is not a multiple of ``m``, the last group is short and keeps at most ``n``;
    whether a layer may have such a group is the remainder policy of
    :func:`nmsparsity.sparsify`, not of the pattern.

    >>> Pattern.parse("2:4")
    Pattern(n=2, m=4, axis='input')
    >>> Pattern(2, 4).mask(torch.tensor([[3., 1., 2., 5.]]))
    tensor([[ True, False, False,  True]])

    Raises:
        ValueError: unless ``0 < n <= m`` and the axis is known. ``n == m`` is the dense pattern.
    """

    n: int
    m: int
    axis: Axis = "input"

    def __post_init__(self) -> None:
        counts = (self.n, self.m)
        if any(isinstance(count, bool) or not isinstance(count, int) for count in counts) or not (
            0 < self.n <= self.m
        ):
            raise ValueError(
                f"pattern '{self.n}:{self.m}': want 'N:M' with 0 < N <= M, for example '2:4' "
                "(N weights of every M are kept)"
            )
        if self.axis not in get_args(Axis):
            raise ValueError(f"axis {self.axis!r}: want 'input' or 'kernel'")

    @classmethod
    def parse(cls, text: str | Pattern, axis: Axis | None = None) -> Pattern:
        """Read ``"N:M"``; a `Pattern` is returned as it is, unless ``axis`` says otherwise.

        >>> Pattern.parse("1:16", axis="kernel")
        Pattern(n=1, m=16, axis='kernel')
        """
        if isinstance(text, Pattern):
            return text if axis is None else cls(text.n, text.m, axis)
        match = _TEXT.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(
                f"pattern {text!r}: want 'N:M' with 0 < N <= M, for example '2:4' "
                "(N weights of every M are kept)"
            )
        return cls(int(match[1]), int(match[2]), axis or "input")

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def density(self) -> float:
        """The share of weights that is kept, ``n / m``."""
        return self.n / self.m

    @property
    def dense(self) -> bool:
        """Whether the pattern keeps everything (``n == m``)."""
        return self.n == self.m

    def divides(self, weight: Tensor, layout: Layout | None = None) -> bool:
        """Whether the axis of this weight is a whole number of groups."""
        return self.length(weight, layout) % self.m == 0

    def length(self, weight: Tensor, layout: Layout | None = None) -> int:
        """The number of weights along the axis: groups tile this length."""
        layout = layout or Layout()
        return layout.length(tuple(weight.shape), self.axis)

    def mask(self, scores: Tensor, layout: Layout | None = None) -> Tensor:
        """The mask that keeps the ``n`` largest scores of every group; ties go to the lower index.

        The plain-torch truth that every faster path is tested against, on any device. Half
        precision is ranked in fp32.

        Args:
            scores: one score per weight, shaped like the weight, ``[out, in, ...]``; for
                magnitude pruning ``weight.abs()``.
            layout: how the layer lays its weight out; default ``[out, in, ...]``.

        Returns:
            A bool tensor of the shape of ``scores``: exactly ``n`` true in every full group and
            ``min(n, length)`` in a short last one.
        """
        layout = layout or Layout()
        rows = layout.fold(scores.detach(), self.axis)
        if rows.dtype in (torch.float16, torch.bfloat16):
            rows = rows.float()
        kept = torch.cat([self._keep(part) for part in self._parts(rows)], dim=1)
        return layout.unfold(kept, tuple(scores.shape), self.axis)

    def _keep(self, groups: Tensor) -> Tensor:
        """Top ``n`` of each group: ``[outer, count, size, inner]`` to ``[outer, -1, inner]``."""
        outer, count, size, inner = groups.shape
        order = groups.sort(dim=2, descending=True, stable=True).indices
        kept = torch.zeros_like(groups, dtype=torch.bool)
        kept.scatter_(2, order[:, :, : self.n], True)
        return kept.reshape(outer, count * size, inner)

    def _parts(self, rows: Tensor) -> Iterator[Tensor]:
        """The full groups of ``[outer, length, inner]``, then the short last one, if any."""
        outer, length, inner = rows.shape
        whole = length - length % self.m
        if whole or not length:
            yield rows[:, :whole].reshape(outer, whole // self.m, self.m, inner)
        if whole < length:
            yield rows[:, whole:].unsqueeze(1)

    def largest(self, values: Tensor, layout: Layout | None = None) -> Tensor:
        """The largest value of every group, at each place of the group: like ``values``.

        >>> Pattern(2, 4).largest(torch.tensor([[0., 3., 1., 2.]]))
        tensor([[3., 3., 3., 3.]])
        """
        layout = layout or Layout()
        rows = layout.fold(values, self.axis)
        parts = [part.amax(dim=2, keepdim=True).expand_as(part) for part in self._parts(rows)]
        spread = [part.reshape(part.shape[0], -1, part.shape[3]) for part in parts]
        return layout.unfold(torch.cat(spread, dim=1), tuple(values.shape), self.axis)

    def counts(self, weight: Tensor, layout: Layout | None = None) -> Tensor:
        """The number of nonzeros in every group, ``[outer, groups, inner]``."""
        layout = layout or Layout()
        rows = layout.fold(weight.detach() != 0, self.axis)
        return torch.cat([part.sum(dim=2) for part in self._parts(rows)], dim=1)

    def holds(self, weight: Tensor, layout: Layout | None = None) -> bool:
        """Whether no group of this weight has more than ``n`` nonzeros.

        >>> Pattern(2, 4).holds(torch.tensor([[0., 1., 0., 2.], [1., 2., 3., 0.]]))
        False
        """
        counts = self.counts(weight, layout)
        return counts.numel() == 0 or int(counts.max()) <= self.n
