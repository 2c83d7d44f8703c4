"""What is promised about a parameter: the pattern it follows, and who keeps it so."""

from __future__ import annotations

import weakref

from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from nmsparsity.pattern import Pattern

_patterns = WeakTensorKeyDictionary()
_keepers = WeakTensorKeyDictionary()


def declare(parameter: nn.Parameter, pattern: Pattern) -> None:
    """Note that this parameter is promised to follow a pattern."""
    _patterns[parameter] = pattern


def declared(parameter: nn.Parameter) -> Pattern | None:
    """The pattern that this parameter is promised to follow, if any."""
    pattern: Pattern | None = _patterns.get(parameter)  # type: ignore[no-untyped-call]
    return pattern


def withdraw(parameter: nn.Parameter) -> None:
    """Nobody keeps this parameter N:M from here on."""
    _patterns.pop(parameter, None)  # type: ignore[no-untyped-call]
    _keepers.pop(parameter, None)  # type: ignore[no-untyped-call]


def claim(parameter: nn.Parameter, keeper: object) -> None:
    """Note who keeps this parameter N:M, as long as the keeper lives."""
    _keepers[parameter] = weakref.ref(keeper)


def claimed(parameter: nn.Parameter) -> bool:
    """Whether someone alive keeps this parameter N:M."""
    keeper = _keepers.get(parameter)  # type: ignore[no-untyped-call]
    return keeper is not None and keeper() is not None
