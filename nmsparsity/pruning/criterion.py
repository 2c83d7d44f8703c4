"""What a pruning criterion is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from nmsparsity.registry import Registry

criteria: Registry[type[Criterion]] = Registry("pruning method")
C = TypeVar("C", bound="type[Criterion]")


class Criterion(ABC):
    """Scores the weights of a trained layer; the highest of every group stay."""

    @abstractmethod
    def score(self, weight: Tensor) -> Tensor:
        """One score per weight, of its shape ``[out, in, ...]``."""


def criterion(name: str) -> Callable[[C], C]:
    """A decorator that makes a `Criterion` known as ``prune(method=name)``."""
    return criteria.register(name)  # type: ignore[return-value]
