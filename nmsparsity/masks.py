"""Masks by the fastest way at hand."""

from __future__ import annotations

import torch
from torch import Tensor

from nmsparsity import native
from nmsparsity.layout import Layout
from nmsparsity.pattern import Pattern


def mask(scores: Tensor, pattern: Pattern, layout: Layout) -> Tensor:
    """`Pattern.mask`, by the native kernel where it can: the same mask, bit for bit.

    >>> mask(torch.tensor([[3., 1., 2., 5.]]), Pattern(2, 4), Layout())
    tensor([[ True, False, False,  True]])
    """
    rows = layout.fold(scores, pattern.axis).contiguous()
    if not native.supports(rows, pattern.m):
        return pattern.mask(scores, layout)
    kept = torch.empty_like(rows, dtype=torch.bool)
    scratch = torch.empty_like(rows)
    native.project(rows, scratch, mask=kept, n=pattern.n, m=pattern.m, by_magnitude=False)
    return layout.unfold(kept, tuple(scores.shape), pattern.axis)
