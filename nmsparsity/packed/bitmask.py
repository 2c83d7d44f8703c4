"""Positions as one bit per weight."""

from __future__ import annotations

import numpy as np

from nmsparsity.packed.bits import Bools, Numbers
from nmsparsity.packed.coding import Coding, Fields


class Bitmask(Coding):
    """``m`` bits a group, lowest position first; 1 is kept.

    >>> Bitmask().encode(np.array([[True, False, False, True]]), n=2).tolist()
    [9]
    """

    name = "bitmask"

    def fields(self, n: int, m: int) -> Fields:
        return Fields(groups=1, numbers=m, width=1)

    def numbers(self, mask: Bools, n: int) -> Numbers:
        return np.ascontiguousarray(mask).view(np.uint8).reshape(-1)

    def mask(self, numbers: Numbers, groups: int, n: int, m: int) -> Bools:
        mask = numbers.reshape(groups, m)
        wrong = np.flatnonzero(np.einsum("gi->g", mask, dtype=np.uint16) != n)
        if len(wrong):
            raise ValueError(f"a bitmask with {mask[wrong[0]].sum()} bits set, want {n}")
        return mask.view(np.bool_)
