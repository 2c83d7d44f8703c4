"""How the positions of kept weights become bits: one interface, one file per coding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nmsparsity.packed import bits
from nmsparsity.packed.bits import Bools, Bytes, Numbers

LARGEST_GROUP = 256
_BLOCK = 2**20


@dataclass(frozen=True)
class Fields:
    """Every ``groups`` groups become ``numbers`` numbers of ``width`` bits."""

    groups: int
    numbers: int
    width: int

    def count(self, groups: int) -> int:
        """The numbers for this many groups; the last lot may be incomplete."""
        return -(-groups // self.groups) * self.numbers

    def nbytes(self, groups: int) -> int:
        """The bytes for this many groups."""
        return bits.size(self.count(groups), self.width)


class Coding(ABC):
    """A way to write down which ``n`` of ``m`` positions every group keeps.

    A coding turns masks into unsigned numbers of a fixed width and back; how numbers become
    bytes, block by block so that memory stays bounded, is the same for all of them.
    """

    name: ClassVar[str]

    @abstractmethod
    def fields(self, n: int, m: int) -> Fields | None:
        """The shape of the numbers, or None where this coding cannot write the pattern."""

    @abstractmethod
    def numbers(self, mask: Bools, n: int) -> Numbers:
        """The numbers for a mask ``[groups, m]`` with exactly ``n`` true in every group."""

    @abstractmethod
    def mask(self, numbers: Numbers, groups: int, n: int, m: int) -> Bools:
        """The mask ``[groups, m]``; a ValueError for numbers that no mask leads to."""

    def encode(self, mask: Bools, n: int) -> Bytes:
        """The stream of bytes for a mask ``[groups, m]``."""
        fields = self._fields(n, mask.shape[1])
        parts = [
            bits.pack(self.numbers(mask[start:stop], n), fields.width)
            for start, stop in _blocks(len(mask), mask.shape[1], fields)
        ]
        return np.concatenate([np.zeros(0, np.uint8), *parts])

    def decode(self, stream: Bytes, groups: int, n: int, m: int) -> Bools:
        """Undo `encode`, checking everything.

        Raises:
            ValueError: for a stream of the wrong length, a nonzero padding bit, or numbers that
                do not describe exactly ``n`` of ``m`` positions.
        """
        fields = self._fields(n, m)
        if len(stream) != fields.nbytes(groups):
            raise ValueError(f"{len(stream)} bytes of positions, want {fields.nbytes(groups)}")
        mask = np.empty((groups, m), np.bool_)
        offset = 0
        for start, stop in _blocks(groups, m, fields):
            length = fields.nbytes(stop - start)
            part = stream[offset : offset + length]
            numbers = bits.unpack(part, fields.count(stop - start), fields.width)
            try:
                mask[start:stop] = self.mask(numbers, stop - start, n, m)
            except ValueError as error:
                raise ValueError(f"{error}, among groups {start} to {stop - 1}") from None
            offset += length
        return mask

    def _fields(self, n: int, m: int) -> Fields:
        fields = self.fields(n, m)
        if fields is None:
            raise ValueError(f"position coding {self.name!r} cannot write {n}:{m}")
        return fields


def _blocks(groups: int, m: int, fields: Fields) -> Iterator[tuple[int, int]]:
    """Runs of groups of about a million weights; all but the last end on a whole byte."""
    step = 8 * fields.groups
    step *= max(1, _BLOCK // (step * m))
    for start in range(0, groups, step):
        yield start, min(start + step, groups)
