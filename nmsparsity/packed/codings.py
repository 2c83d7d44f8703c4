"""The position codings there are, and which one is the smallest."""

from __future__ import annotations

from nmsparsity.packed.bitmask import Bitmask
from nmsparsity.packed.coding import LARGEST_GROUP, Coding
from nmsparsity.packed.combinadic import Combinadic
from nmsparsity.packed.index import Index
from nmsparsity.pattern import Pattern
from nmsparsity.registry import Registry

CODINGS = Registry[Coding]("position coding")
_SIMPLEST_FIRST = (Bitmask(), Index(), Combinadic())
for _coding in _SIMPLEST_FIRST:
    CODINGS.register(_coding.name)(_coding)


def smallest(groups: int, pattern: Pattern) -> Coding:
    """The coding that needs the fewest bytes; of equals, the one that is simplest to decode.

    >>> smallest(1000, Pattern(1, 4)).name, smallest(1000, Pattern(2, 4)).name
    ('index', 'combinadic')
    >>> smallest(1, Pattern(2, 4)).name  # one byte; a single combinadic number would take six
    'bitmask'
    """
    return min(_SIMPLEST_FIRST, key=lambda coding: _nbytes(coding, groups, pattern))


def position_bytes(groups: int, pattern: Pattern) -> int:
    """The bytes of the positions of this many groups, in the smallest coding."""
    return int(_nbytes(smallest(groups, pattern), groups, pattern))


def check_pattern(name: str, pattern: Pattern) -> None:
    """Refuse groups larger than positions of one byte can index."""
    if pattern.m > LARGEST_GROUP:
        raise ValueError(
            f"{name}: pattern {pattern}: packed storage takes groups of up to {LARGEST_GROUP}; "
            "choose a smaller M or store this weight dense"
        )


def _nbytes(coding: Coding, groups: int, pattern: Pattern) -> float:
    fields = coding.fields(pattern.n, pattern.m)
    return float("inf") if fields is None else fields.nbytes(groups)
