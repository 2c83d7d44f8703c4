"""Whether a model, traced or packed, still computes what it did on the example inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from nmsparsity.compression.observe import Calls, observe, same


class ChangedError(RuntimeError):
    """It does not; the cause is the error that it fails with, if it does."""


def check(
    done: str, model: nn.Module, inputs: Any, expected: Any, parts: Iterable[nn.Module] = ()
) -> Calls:
    """How the model calls these parts, when it gives the expected outputs.

    Args:
        done: what was done to the model, for the message.
        model, inputs, parts: as of `observe`.
        expected: the outputs that it gave before.

    Raises:
        ChangedError: when it fails or gives another result.
    """
    try:
        outputs, calls = observe(model, inputs, parts)
    except Exception as error:  # What a foreign forward misses in a graph is beyond any list.
        raise ChangedError(f"{done}, the model fails: {first_line(error)}") from error
    if not same(expected, outputs):
        raise ChangedError(f"{done}, the model gives another result on the example inputs")
    return calls


def first_line(error: Exception) -> str:
    """What an error says, in short."""
    said = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {said:.120}"
