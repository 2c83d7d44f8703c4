"""A model as a function of tensors: what exporters and other engines take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's outputs for a tuple of arguments, a mapping of named ones, or one argument."""
    args, kwargs = _arguments(inputs)
    return model(*args, **kwargs)


def tensors(value: Any) -> list[Tensor]:
    """All tensors in a value, however they are nested.

    >>> import torch
    >>> [x.shape[0] for x in tensors({"a": torch.ones(1), "b": (torch.ones(2), 3)})]
    [1, 2]
    """
    return [leaf for leaf in _pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def first(value: Any, count: int) -> Any:
    """The first entries of every tensor in a value.

    >>> import torch
    >>> first({"a": torch.ones(5, 2), "b": 3}, 2)["a"].shape
    torch.Size([2, 2])
    """
    return _pytree.tree_map(lambda x: x[:count] if isinstance(x, Tensor) else x, value)


class Flat(nn.Module):
    """A model whose arguments and results are tensors side by side.

    Args:
        model: any module.
        inputs: its arguments; what is no tensor in them stays as it is.

    Raises:
        ValueError: for inputs without a tensor.

    >>> import torch
    >>> flat = Flat(nn.Linear(4, 2), {"input": torch.ones(3, 4)})
    >>> [tuple(result.shape) for result in flat(*flat.tensors)]
    [(3, 2)]
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.model = model
        self._leaves, self._spec = _pytree.tree_flatten(_arguments(inputs))
        if not self.tensors:
            raise ValueError("inputs: want one tensor at least, got none")

    @property
    def tensors(self) -> list[Tensor]:
        """The arguments that are tensors."""
        return [leaf for leaf in self._leaves if isinstance(leaf, Tensor)]

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        rest = iter(given)
        leaves = [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        args, kwargs = _pytree.tree_unflatten(leaves, self._spec)
        return tuple(tensors(self.model(*args, **kwargs)))


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}
