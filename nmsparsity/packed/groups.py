"""A weight as the list of its groups, ``[groups, m]``, and back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nmsparsity.layout import Layout
from nmsparsity.pattern import Pattern

Shape = tuple[int, ...]


def check_shape(name: str, shape: Shape, layout: Layout) -> None:
    """Refuse a shape that this layout cannot fold into groups.

    Raises:
        ValueError: naming the weight, for fewer than two dimensions, a negative or absurd size,
            an unknown input dimension, or inputs that the convolution groups do not divide.
    """
    if len(shape) < 2:
        raise ValueError(f"{name} {list(shape)}: want two dimensions or more to find groups in")
    if any(size < 0 for size in shape) or math.prod(size or 1 for size in shape) >= 2**62:
        raise ValueError(f"{name} {list(shape)}: not the shape of a tensor")
    if layout.input_dim not in (0, 1) or layout.conv_groups < 1:
        raise ValueError(f"{name}: {layout}: want input_dim 0 or 1 and conv_groups of at least 1")
    if layout.input_dim == 0 and shape[0] % layout.conv_groups:
        raise ValueError(
            f"{name} {list(shape)}: {shape[0]} inputs do not divide into {layout.conv_groups} "
            "convolution groups"
        )


def per_row(shape: Shape, pattern: Pattern, layout: Layout) -> int:
    """The number of groups, the short last one included, that tile one row of the axis."""
    return -(-layout.length(shape, pattern.axis) // pattern.m)


def count(shape: Shape, pattern: Pattern, layout: Layout) -> int:
    """The number of groups of a weight of this shape.

    >>> count((8, 6, 3, 3), Pattern(2, 4), Layout())  # two a row, the second one short; 8 * 9 rows
    144
    """
    length = layout.length(shape, pattern.axis)
    rows = math.prod(shape) // length if length else 0
    return rows * per_row(shape, pattern, layout)


def split(weight: Tensor, pattern: Pattern, layout: Layout) -> Tensor:
    """The groups of a weight, ``[groups, m]``: all groups of one row, then those of the next.

    A row is one filter (axis ``kernel``), or one filter at one kernel position (axis ``input``).
    Where a row is no multiple of ``m``, virtual zeros complete its last group.
    """
    rows = layout.fold(weight, pattern.axis).transpose(1, 2)
    missing = per_row(tuple(weight.shape), pattern, layout) * pattern.m - rows.shape[2]
    if missing:
        rows = torch.cat([rows, rows.new_zeros(*rows.shape[:2], missing)], dim=2)
    return rows.reshape(-1, pattern.m)


def join(groups: Tensor, shape: Shape, pattern: Pattern, layout: Layout) -> Tensor:
    """Undo `split`: contiguous, of the weight's own shape.

    Raises:
        ValueError: for a virtual position, beyond the end of its row, that is not zero.
    """
    length = layout.length(shape, pattern.axis)
    if not math.prod(shape):
        return groups.new_zeros(shape)
    inner = math.prod(shape[2:]) if pattern.axis == "input" else 1
    if layout.input_dim == 0 and pattern.axis == "input":
        inner *= shape[1]
    rows = groups.reshape(-1, inner, per_row(shape, pattern, layout) * pattern.m)
    if bool((rows[:, :, length:] != 0).any()):
        raise ValueError("a value beyond the end of its row is not zero")
    folded = rows[:, :, :length].transpose(1, 2)
    return layout.unfold(folded, shape, pattern.axis).contiguous()


def place(index: int, shape: Shape, pattern: Pattern, layout: Layout) -> str:
    """Where a group lies in the weight, in words.

    >>> place(21, (4, 8, 3, 3), Pattern(2, 4), Layout())
    'filter 1, kernel position (0, 1), group 1'
    >>> place(21, (8, 16), Pattern(2, 4), Layout())
    'row 5, group 1'
    """
    row, group = divmod(index, per_row(shape, pattern, layout))
    return f"{', '.join(_row(row, shape, pattern, layout))}, group {group}"


def _row(row: int, shape: Shape, pattern: Pattern, layout: Layout) -> list[str]:
    kernel = shape[2:]
    words: list[str] = []
    if pattern.axis == "input" and kernel:
        row, flat = divmod(row, math.prod(kernel))
        position = [int(i) for i in torch.unravel_index(torch.tensor(flat), kernel)]
        words = [f"kernel position ({', '.join(map(str, position))})"]
    noun = "filter" if kernel else "row" if layout.input_dim == 1 else "column"
    if layout.input_dim == 0 and layout.conv_groups > 1:
        convolution, row = divmod(row, shape[1])
        return [f"convolution group {convolution}", f"{noun} {row}", *words]
    return [f"{noun} {row}", *words]
