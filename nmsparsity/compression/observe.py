"""How a model calls its layers: one run with example inputs, watched."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from nmsparsity.kernels.problem import memory_format

Calls: TypeAlias = "dict[nn.Module, Counter[tuple[tuple[int, ...], bool]]]"

_TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 1e-1, torch.float64: 1e-6}


def uses(inputs: Any) -> bool:
    """Whether example inputs are a function that uses the model, and no input."""
    return callable(inputs) and not isinstance(inputs, (Tensor, nn.Module))


@torch.no_grad()
def run(model: nn.Module, inputs: Any) -> Any:
    """The model's outputs for a tuple of arguments, a mapping of named ones, or else one argument;
    or what a function that is given the model returns.

    The model gets a copy: it may write into its inputs, or fill a cache among them.
    """
    if uses(inputs):
        return inputs(model)
    inputs = copy.deepcopy(inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def observe(model: nn.Module, inputs: Any, layers: Iterable[nn.Module]) -> tuple[Any, Calls]:
    """The outputs, and for every layer the shapes of its inputs and whether channels are last."""
    calls: Calls = {}

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            last = memory_format(args[0]) is torch.channels_last
            calls.setdefault(module, Counter())[tuple(args[0].shape), last] += 1

    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        return run(model, inputs), calls
    finally:
        for handle in handles:
            handle.remove()


def same(outputs: Any, others: Any) -> bool:
    """Whether two outputs of a model agree as well as another order of sums allows."""
    pairs = [
        [x for x in _pytree.tree_leaves(o) if isinstance(x, Tensor)] for o in (outputs, others)
    ]
    if [x.shape for x in pairs[0]] != [x.shape for x in pairs[1]]:
        return False
    return all(_close(x, y) for x, y in zip(*pairs, strict=True))


def _close(x: Tensor, y: Tensor) -> bool:
    if not x.is_floating_point() or x.dtype != y.dtype or not x.numel():
        return x.dtype == y.dtype and torch.equal(x, y)
    scale = x.abs().nan_to_num(0.0, 0.0, 0.0).max().double() + 1e-6
    atol = _TOLERANCE.get(x.dtype, 1e-3) * float(scale)
    return torch.allclose(x, y, rtol=0.0, atol=atol, equal_nan=True)
