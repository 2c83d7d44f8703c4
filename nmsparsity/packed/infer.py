"""The pattern that a weight follows, found from its zeros."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nmsparsity.layout import Layout
from nmsparsity.packed.codings import position_bytes
from nmsparsity.packed.groups import count
from nmsparsity.pattern import Axis, Pattern

_SIZES = range(2, 65)
_BLOCK = 2**22


def packed_bytes(weight: Tensor, pattern: Pattern, layout: Layout) -> int:
    """The bytes this weight takes in this pattern, whether it follows it or not."""
    groups = count(tuple(weight.shape), pattern, layout)
    return groups * pattern.n * weight.itemsize + position_bytes(groups, pattern)


def infer(weight: Tensor, layout: Layout | None = None) -> Pattern | None:
    """The N:M pattern with M from 2 to 64 in which this weight takes the fewest bytes.

    None where no pattern makes it smaller than dense. Of equals, the input axis and the smaller
    M are preferred.

    Args:
        weight: of two dimensions or more, laid out as ``layout`` says.
        layout: default ``[out, in, ...]``.

    >>> infer(torch.tensor([[1., 2., 0., 0., 3., 0., 4., 0.]]).repeat(8, 4))
    Pattern(n=2, m=4, axis='input')
    >>> infer(torch.ones(8, 8)) is None
    True
    """
    layout = layout or Layout()
    nonzero = (weight.detach() != 0).cpu()
    best, smallest = None, weight.nbytes
    if int(nonzero.sum()) * weight.itemsize >= smallest:
        return None
    for axis in _axes(tuple(weight.shape), layout):
        for pattern in _tightest(nonzero, axis, layout):
            size = packed_bytes(weight, pattern, layout)
            if size < smallest:
                best, smallest = pattern, size
    return best


def shown(weight: Tensor, layout: Layout | None = None) -> Pattern | None:
    """The pattern that a weight without a promise shows by its zeros, if somebody made it so.

    Most groups that are not empty must have exactly N nonzeros: scattered zeros also leave some
    N:M that saves bytes, such as 19:61, but nobody made it so.

    >>> shown(torch.tensor([[1., 2., 0., 0., 3., 0., 4., 0.]]).repeat(8, 4))
    Pattern(n=2, m=4, axis='input')
    """
    pattern = infer(weight, layout)
    if pattern is None:
        return None
    counts = pattern.counts(weight, layout)
    filled = counts[counts > 0]
    exact = (filled == pattern.n).sum() * 2 > filled.numel()
    return pattern if bool(exact) else None


def _axes(shape: tuple[int, ...], layout: Layout) -> tuple[Axis, ...]:
    """Both axes, or the first alone where they are the same groups."""
    first, second = get_args(Axis)
    same = layout.length(shape, first) == layout.length(shape, second)
    return (first,) if same else (first, second)


def _tightest(nonzero: Tensor, axis: Axis, layout: Layout) -> Iterator[Pattern]:
    """For every M, the pattern with the N of its fullest group."""
    rows = layout.fold(nonzero, axis).transpose(1, 2).flatten(0, 1)
    fullest = np.ones(len(_SIZES), np.int64)
    step = max(1, _BLOCK // max(1, rows.shape[1]))
    for start in range(0, rows.shape[0], step):
        fullest = np.maximum(fullest, _fullest(rows[start : start + step]))
    for m, n in zip(_SIZES, fullest, strict=True):
        if n < m:
            yield Pattern(int(n), m, axis)


def _fullest(rows: Tensor) -> NDArray[np.int64]:
    """The nonzeros of the fullest group of ``[rows, length]``, for every M."""
    before = torch.nn.functional.pad(rows.cumsum(1, dtype=torch.int32), (1, 0)).numpy()
    return np.array([_fullest_of(before, m) for m in _SIZES], np.int64)


def _fullest_of(before: NDArray[np.int32], m: int) -> int:
    marks = before[:, ::m]
    whole = np.diff(marks, axis=1).max(initial=0)
    return int(max(whole, (before[:, -1] - marks[:, -1]).max(initial=0)))
