"""What a kernel does to a result before it stores it: add a residual, then an activation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor
from torch.nn import functional

Activation = Literal["none", "relu", "gelu", "gelu_tanh", "silu"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
}


def finish(result: Tensor, activation: str, residual: Tensor | None = None) -> Tensor:
    """``activation(result + residual)``: the truth that fused epilogues are tested against.

    ``gelu`` is the exact form with erf, ``gelu_tanh`` its approximation.

    >>> import torch
    >>> finish(torch.tensor([1.0, -3.0]), "relu", torch.tensor([1.0, 1.0]))
    tensor([2., 0.])
    """
    if residual is not None:
        result = result + residual
    return ACTIVATIONS[activation](result)


def check_activation(name: str, activation: str) -> None:
    """Refuse an activation that no kernel knows; a ValueError naming the layer."""
    if activation not in ACTIVATIONS:
        known = ", ".join(get_args(Activation))
        raise ValueError(f"layer {name!r}: unknown activation {activation!r}; known: {known}")
