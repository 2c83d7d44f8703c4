"""Positions as a number in the combinatorial number system: the fewest bits."""

from __future__ import annotations

from functools import cache
from math import comb

import numpy as np
from numpy.typing import NDArray

from nmsparsity.packed.bits import Bools, Numbers
from nmsparsity.packed.coding import Coding, Fields

_WORD = 64
_TABLE = 4096


class Combinadic(Coding):
    """Every group is one of ``C(m, n)`` subsets; its rank is written, several groups together.

    The rank of positions ``p_1 < p_2 < ... < p_n`` is ``sum_j C(p_j, j)``, a number below
    ``C(m, n)`` (D. E. Knuth, The Art of Computer Programming 4A, 7.2.1.3, theorem L). A single
    rank wastes up to a bit in rounding up, so ``k`` groups are written as one number in base
    ``C(m, n)``, the first group its lowest digit, in ``b = ceil(k log2 C(m, n))`` bits. Of all
    ``k`` with ``b <= 64`` the one with the smallest ``b / k`` is taken, the smallest such ``k``.

    For 2:4 that is 17 groups in 44 bits: 0.647 bits a weight, where the bound is 0.646.

    >>> Combinadic().encode(np.array([[True, False, False, True]]), n=2).tolist()  # C(0,1) + C(3,2)
    [3, 0, 0, 0, 0, 0]
    """

    name = "combinadic"

    def fields(self, n: int, m: int) -> Fields | None:
        return _fields(n, m)

    def numbers(self, mask: Bools, n: int) -> Numbers:
        groups, m = mask.shape
        fields = self._fields(n, m)
        digits = np.zeros((fields.count(groups), fields.groups), np.uint64)
        digits.reshape(-1)[:groups] = _rank(mask, n)
        base, numbers = np.uint64(comb(m, n)), np.zeros(len(digits), np.uint64)
        for digit in digits.T[::-1]:
            numbers = numbers * base + digit
        return numbers

    def mask(self, numbers: Numbers, groups: int, n: int, m: int) -> Bools:
        fields, subsets = self._fields(n, m), comb(m, n)
        _check(numbers[:-1], subsets**fields.groups)
        _check(numbers[-1:], subsets ** ((groups - 1) % fields.groups + 1))
        ranks = _digits(numbers.astype(np.uint64), subsets, fields.groups)[:groups]
        if subsets <= _TABLE:
            mask: Bools = _every_mask(n, m)[ranks]
            return mask
        return _unrank(ranks, n, m)


@cache
def _fields(n: int, m: int) -> Fields | None:
    subsets = comb(m, n)
    best: Fields | None = None
    for groups in range(1, _WORD + 1):
        width = (subsets**groups - 1).bit_length()
        if width > _WORD:
            break
        if best is None or width * best.groups < best.width * groups:
            best = Fields(groups=groups, numbers=1, width=width)
    return best


def _rank(mask: Bools, n: int) -> NDArray[np.uint64]:
    positions = (np.flatnonzero(mask) % mask.shape[1]).reshape(-1, n)
    ranks = np.zeros(len(mask), np.uint64)
    for j, chosen in enumerate(positions.T, start=1):
        ranks += _column(j, n, mask.shape[1])[chosen]
    return ranks


def _unrank(ranks: NDArray[np.uint64], n: int, m: int) -> Bools:
    """Greedy, from the highest position down: the largest ``p`` with ``C(p, j)`` in the rest."""
    mask, rest = np.zeros((len(ranks), m), np.bool_), ranks.copy()
    rows = np.arange(len(ranks))
    for j in range(n, 0, -1):
        column = _column(j, n, m)
        position = np.searchsorted(column, rest, side="right") - 1
        mask[rows, position] = True
        rest -= column[position]
    return mask


@cache
def _column(j: int, n: int, m: int) -> NDArray[np.uint64]:
    """``C(p, j)`` for every position ``p`` that the ``j``-th of ``n`` can take."""
    return np.array([comb(p, j) for p in range(m - n + j)], np.uint64)


@cache
def _every_mask(n: int, m: int) -> Bools:
    return _unrank(np.arange(comb(m, n), dtype=np.uint64), n, m)


def _digits(numbers: NDArray[np.uint64], base: int, count: int) -> NDArray[np.uint64]:
    digits = np.empty((len(numbers), count), np.uint64)
    for i in range(count):
        numbers, digits[:, i] = np.divmod(numbers, np.uint64(base))
    return digits.reshape(-1)


def _check(numbers: Numbers, limit: int) -> None:
    if len(numbers) and int(numbers.max()) >= limit:
        raise ValueError(f"the number {numbers.max()}, want less than {limit}")
