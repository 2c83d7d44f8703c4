"""Positions as indices within the group."""

from __future__ import annotations

import numpy as np

from nmsparsity.packed.bits import Bools, Numbers
from nmsparsity.packed.coding import Coding, Fields


class Index(Coding):
    """``n`` indices of ``ceil(log2 m)`` bits a group, strictly increasing.

    >>> Index().encode(np.array([[True, False, False, True]]), n=2).tolist()  # 0 + 3 * 4
    [12]
    """

    name = "index"

    def fields(self, n: int, m: int) -> Fields:
        return Fields(groups=1, numbers=n, width=(m - 1).bit_length())

    def numbers(self, mask: Bools, n: int) -> Numbers:
        indices: Numbers = (np.flatnonzero(mask) % mask.shape[1]).astype(np.uint8)
        return indices

    def mask(self, numbers: Numbers, groups: int, n: int, m: int) -> Bools:
        indices = numbers.reshape(groups, n)
        if numbers.size and numbers.max() >= m:
            raise ValueError(f"index {numbers.max()} in a group of {m}")
        if (indices[:, 1:] <= indices[:, :-1]).any():
            raise ValueError("indices that do not increase")
        mask = np.zeros((groups, m), np.bool_)
        mask[np.arange(groups)[:, None], indices] = True
        return mask
