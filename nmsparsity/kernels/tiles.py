"""The run-time form of a packed weight that the native kernels read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nmsparsity.kernels.problem import Problem
from nmsparsity.native.product import SLOTS, WINDOW

_DIGITS = 8  # positions of 4 bits in a word


def make_tiles(problem: Problem, weight: Tensor, lanes: int) -> tuple[Tensor, Tensor]:
    """Values and positions, for ``lanes`` rows side by side.

    A row's inputs, tap by tap and channel by channel, are cut into windows of 16. Every window
    keeps as many entries as the fullest window of the weight; entries too many have the value 0.

    Args:
        problem: of the weight.
        weight: fp32, ``[out, in]`` or ``[out, in / groups, height, width]``.
        lanes: rows of a block.

    Returns:
        Values ``[groups * blocks * windows, slots, lanes]``, and words of eight 4-bit positions,
        int32 ``[groups * blocks, windows * slots / 8, lanes]``. (Tensors of four dimensions would
        follow a model to ``channels_last``.)
    """
    rows = _windows(problem, weight, lanes)
    kept = rows != 0
    slots = _slots(int(kept.sum(-1).max()) if kept.numel() else 1)
    step = math.lcm(slots, _DIGITS) // slots
    rows = torch.nn.functional.pad(rows, (0, 0, 0, -rows.shape[2] % step))
    kept = rows != 0
    places = (~kept).to(torch.uint8).argsort(dim=-1, stable=True)[..., :slots]
    values = rows.gather(-1, places)
    # An entry too many stands where a kept one does: it meets no input that the others do not.
    count = kept.sum(-1, keepdim=True)
    last = places.gather(-1, (count - 1).clamp(min=0))
    places = torch.where(torch.arange(slots) < count, places, last)
    groups, padded = rows.shape[:2]
    shape = (groups * padded // lanes, lanes, rows.shape[2] * slots)
    words = _side_by_side(_words(places.reshape(shape)))
    return _side_by_side(values.reshape(shape)).reshape(-1, slots, lanes), words


def read_tiles(problem: Problem, tiles: Sequence[Tensor]) -> Tensor:
    """Undo `make_tiles`: the dense weight, bit by bit (a kept zero reads as +0.0)."""
    values, words = tiles
    blocks, windows = words.shape[0], windows_of(tiles)
    _, slots, lanes = values.shape
    digits = 4 * torch.arange(_DIGITS, dtype=torch.int32)
    places = ((words.transpose(1, 2).unsqueeze(-1) >> digits) & 15).long()
    values = values.reshape(blocks, windows, slots, lanes).movedim(-1, 1)
    rows = torch.zeros(blocks, lanes, windows, WINDOW)
    rows.scatter_add_(-1, places.reshape(values.shape), values)
    groups = problem.groups
    rows = rows.reshape(groups, -1, windows, WINDOW)
    out, channels, taps = problem.outputs // groups, problem.shape[1], _taps(problem)
    per_tap = -(-channels // WINDOW)
    rows = rows[:, :out, : taps * per_tap].reshape(groups, out, taps, per_tap * WINDOW)
    return rows[..., :channels].transpose(2, 3).reshape(problem.shape).contiguous()


def windows_of(tiles: Sequence[Tensor]) -> int:
    """How many windows a row of these tiles has."""
    return tiles[0].shape[0] // max(tiles[1].shape[0], 1)


def _windows(problem: Problem, weight: Tensor, lanes: int) -> Tensor:
    """``[groups, rows, windows, 16]``: rows and channels filled up with zeros."""
    groups, channels, taps = problem.groups, problem.shape[1], _taps(problem)
    rows = weight.reshape(groups, problem.outputs // groups, channels, taps).transpose(2, 3)
    missing = (0, -channels % WINDOW, 0, 0, 0, -rows.shape[1] % lanes)
    return torch.nn.functional.pad(rows, missing).reshape(groups, -1, taps * -(-channels // 16), 16)


def _taps(problem: Problem) -> int:
    return math.prod(problem.shape[2:])


def _slots(kept: int) -> int:
    return next(slots for slots in SLOTS if slots >= kept)


def _words(places: Tensor) -> Tensor:
    """Eight positions to a word, the first in the lowest bits."""
    eights = places.long().reshape(*places.shape[:-1], -1, _DIGITS)
    words = (eights << 4 * torch.arange(_DIGITS)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def _side_by_side(rows: Tensor) -> Tensor:
    """Rows of a block as the innermost dimension."""
    return rows.transpose(1, 2).contiguous()
