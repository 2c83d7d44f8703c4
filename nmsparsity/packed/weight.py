"""A sparse weight as its kept values and their positions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nmsparsity.layout import Layout
from nmsparsity.packed.bits import Bools
from nmsparsity.packed.coding import Coding
from nmsparsity.packed.codings import CODINGS, check_pattern, smallest
from nmsparsity.packed.groups import Shape, check_shape, count, join, place, split
from nmsparsity.pattern import Pattern
from nmsparsity.registry import near

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_SAME_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """An N:M weight as what it keeps: ``n`` values a group, and where they stand.

    Loss-free: every nonzero weight keeps its exact bits. A zero weight reads back as +0.0, even
    if it was -0.0. A group with fewer than ``n`` nonzeros fills its free places with the zeros of
    lowest index. Plain tensors on the CPU; the exact format is in ``docs/format.md``.

    >>> weight = torch.tensor([[0.0, 1.5, 0.0, 2.5], [3.0, 0.0, 0.0, 0.0]])
    >>> packed = PackedWeight.pack(weight, Pattern(2, 4))
    >>> packed.values
    tensor([[1.5000, 2.5000],
            [3.0000, 0.0000]])
    >>> packed.indices()
    tensor([[1, 3],
            [0, 1]], dtype=torch.uint8)
    >>> bool((packed.unpack() == weight).all())
    True

    Args:
        values: the kept weights, ``[groups, n]``, in the order of the positions.
        positions: uint8, the positions in the given coding.
        pattern: N, M and the axis.
        layout: how the layer lays out its weight.
        shape: the dense shape, ``[out, in, ...]`` or as the layout says.
        coding: the name of the position coding: ``bitmask``, ``index`` or ``combinadic``.
        name: what errors call this weight.

    Raises:
        ValueError: naming the weight, for anything that does not fit together.
    """

    values: Tensor
    positions: Tensor
    pattern: Pattern
    layout: Layout
    shape: Shape
    coding: str
    name: str = "weight"

    def __post_init__(self) -> None:
        check_pattern(self.name, self.pattern)
        check_shape(self.name, self.shape, self.layout)
        _check_dtype(self.name, self.values.dtype)
        want = (count(self.shape, self.pattern, self.layout), self.pattern.n)
        if tuple(self.values.shape) != want:
            raise ValueError(
                f"{self.name}: values of shape {list(self.values.shape)}, want {list(want)} for "
                f"a {self.pattern} weight {list(self.shape)}"
            )
        if self.positions.dtype != torch.uint8 or self.positions.dim() != 1:
            raise ValueError(
                f"{self.name}: positions are {self.positions.dtype} of shape "
                f"{list(self.positions.shape)}, want torch.uint8 in one dimension"
            )
        fields = self._coding().fields(self.pattern.n, self.pattern.m)
        if fields is None or fields.nbytes(want[0]) != len(self.positions):
            raise ValueError(
                f"{self.name}: {len(self.positions)} bytes of positions do not fit {want[0]} "
                f"groups of {self.pattern} in coding {self.coding!r}"
            )

    @classmethod
    def pack(
        cls,
        weight: Tensor,
        pattern: str | Pattern,
        layout: Layout | None = None,
        name: str = "weight",
    ) -> PackedWeight:
        """Pack a weight that follows the pattern already; nothing is ever pruned here.

        Args:
            weight: fp32, fp16, bf16 or fp64, ``[out, in, ...]`` or as the layout says.
            pattern: ``"2:4"`` or a `Pattern`; at most ``n`` of every ``m`` are nonzero, ``m`` up
                to 256.
            layout: default ``[out, in, ...]``.
            name: what errors call this weight.

        Raises:
            ValueError: naming the weight, and the first group with too many nonzeros; also for
                NaN and infinity, and for other dtypes.
        """
        layout, pattern = layout or Layout(), Pattern.parse(pattern)
        weight = weight.detach().cpu()
        _check_dtype(name, weight.dtype)
        check_pattern(name, pattern)
        check_shape(name, tuple(weight.shape), layout)
        _check_finite(name, weight)
        groups = split(weight, pattern, layout)
        mask = (groups != 0).numpy()
        kept = _count(mask)
        _check_counts(name, kept, tuple(weight.shape), pattern, layout)
        _fill(mask, kept, pattern.n)
        coding = smallest(len(mask), pattern)
        return cls(
            values=_take(groups, mask).reshape(-1, pattern.n),
            positions=torch.from_numpy(coding.encode(mask, pattern.n)),
            pattern=pattern,
            layout=layout,
            shape=tuple(weight.shape),
            coding=coding.name,
            name=name,
        )

    def unpack(self) -> Tensor:
        """The dense weight, contiguous, on the CPU; checks positions and values on the way.

        Raises:
            ValueError: naming the weight, for positions that are no positions, a value that is
                not finite, and a value beyond the end of its row that is not zero.
        """
        mask = self._mask()
        _check_finite(self.name, self.values)
        groups = _put(self.values, mask)
        try:
            return join(groups, self.shape, self.pattern, self.layout)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None

    def _mask(self) -> Bools:
        """Which positions of every group are kept, ``[groups, m]``: exactly ``n`` each."""
        stream = self.positions.numpy()
        try:
            return self._coding().decode(stream, len(self.values), self.pattern.n, self.pattern.m)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None

    def _coding(self) -> Coding:
        if self.coding not in CODINGS:
            raise ValueError(
                f"{self.name}: unknown position coding {self.coding!r}; known: "
                f"{', '.join(CODINGS)}{near(self.coding, CODINGS)}"
            )
        return CODINGS[self.coding]

    def indices(self) -> Tensor:
        """The position of every value in its group, uint8 ``[groups, n]``, increasing."""
        flat = np.flatnonzero(self._mask()) % self.pattern.m
        return torch.from_numpy(flat.astype(np.uint8).reshape(-1, self.pattern.n))

    @property
    def nbytes(self) -> int:
        """The bytes of values and positions."""
        return self.values.nbytes + self.positions.nbytes

    @property
    def dense_nbytes(self) -> int:
        """The bytes of the dense weight."""
        return math.prod(self.shape) * self.values.itemsize

    def __repr__(self) -> str:
        return (
            f"PackedWeight({self.name} {list(self.shape)} {self.values.dtype}, {self.pattern} "
            f"along {self.pattern.axis}, {self.coding}, {self.nbytes} of {self.dense_nbytes} bytes)"
        )


def check_holds(weight: Tensor, pattern: Pattern, layout: Layout, name: str) -> None:
    """Refuse a weight that does not follow its pattern, as `PackedWeight.pack` does, for any M.

    Raises:
        ValueError: naming the weight, and the first group with too many nonzeros.
    """
    check_shape(name, tuple(weight.shape), layout)
    _check_finite(name, weight)
    kept = _count((split(weight.detach().cpu(), pattern, layout) != 0).numpy())
    _check_counts(name, kept, tuple(weight.shape), pattern, layout)


def _check_dtype(name: str, dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        known = ", ".join(map(str, DTYPES))
        raise ValueError(f"{name}: dtype {dtype}: packed storage takes {known}")


def _check_finite(name: str, weight: Tensor) -> None:
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(f"{name} {list(weight.shape)}: NaN or infinity among the weights")


def _count(mask: Bools) -> NDArray[np.uint32]:
    counts: NDArray[np.uint32] = np.einsum("gi->g", mask.view(np.uint8), dtype=np.uint32)
    return counts


def _check_counts(
    name: str, kept: NDArray[np.uint32], shape: Shape, pattern: Pattern, layout: Layout
) -> None:
    wrong = np.flatnonzero(kept > pattern.n)
    if not len(wrong):
        return
    first = int(wrong[0])
    raise ValueError(
        f"{name} {list(shape)} is not {pattern} along its {pattern.axis} axis: "
        f"{place(first, shape, pattern, layout)} has {kept[first]} nonzeros "
        f"({len(wrong)} of {len(kept)} groups have more than {pattern.n}); packing never prunes: "
        "give the pattern it was trained with, or prune it first"
    )


def _fill(mask: Bools, kept: NDArray[np.uint32], n: int) -> None:
    """Give groups with free places their zeros of lowest index, in place."""
    few = np.flatnonzero(kept < n)
    if len(few):
        zeros = ~mask[few]
        free = (n - kept[few])[:, None]
        mask[few] |= zeros & (np.cumsum(zeros, axis=1, dtype=np.uint16) <= free)


def _take(groups: Tensor, mask: Bools) -> Tensor:
    """The values under the mask, bit by bit; -0.0 becomes +0.0."""
    bits = groups.view(_SAME_BITS[groups.itemsize]).numpy()
    values = torch.from_numpy(bits[mask]).view(groups.dtype)
    return values.masked_fill_(values == 0, 0)


def _put(values: Tensor, mask: Bools) -> Tensor:
    """Zeros, with the values under the mask."""
    bits = values.contiguous().view(_SAME_BITS[values.itemsize]).numpy()
    groups = np.zeros(mask.shape, bits.dtype)
    groups[mask] = bits.reshape(-1)
    return torch.from_numpy(groups).view(values.dtype)
