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
from nmsparsity.layers.fast_path import without_fast_paths

Calls: TypeAlias = "dict[nn.Module, Counter[tuple[tuple[int, ...], bool]]]"

_TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 1e-1, torch.float64: 1e-6}


def uses(inputs: Any) -> bool:
    """Whether example inputs are a function that uses the model, and no input."""
    return callable(inputs) and not isinstance(inputs, (Tensor, nn.Module))


@torch.no_grad()
def run(model: nn.Module, inputs: Any) -> Any:
    """The model's outputs for a tuple of arguments, a mapping of named ones, or else one argument;
    or what a function that is given the model returns.

    The model gets a copy: it may write into its inputs, or fill a cache among them. It draws the
    same random numbers every time: it may choose what it generates.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        if uses(inputs):
            return inputs(model)
        inputs = copy.deepcopy(inputs)
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def observe(model: nn.Module, inputs: Any, parts: Iterable[nn.Module]) -> tuple[Any, Calls]:
    """The outputs, and for every part that is called the shapes of its inputs and whether channels
    are last."""
    calls: Calls = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        seen = calls.setdefault(module, Counter())
        x = next(iter((*args, *kwargs.values())), None)
        if isinstance(x, Tensor):
            seen[tuple(x.shape), memory_format(x) is torch.channels_last] += 1

    handles = [part.register_forward_pre_hook(note, with_kwargs=True) for part in parts]
    try:
        with without_fast_paths():
            return run(model, inputs), calls
    finally:
        for handle in handles:
            handle.remove()


def same(outputs: Any, others: Any) -> bool:
    """Whether two outputs of a model agree as well as another order of sums allows."""
    pairs = [_tensors(outputs), _tensors(others)]
    if [x.shape for x in pairs[0]] != [x.shape for x in pairs[1]]:
        return False
    return all(_close(x, y) for x, y in zip(*pairs, strict=True))


def chooses(outputs: Any) -> bool:
    """Whether there are whole numbers in it, such as words: what chooses them may choose others
    for a difference in the last bit, and then goes another way."""
    return not all(x.is_floating_point() for x in _tensors(outputs))


def _tensors(outputs: Any) -> list[Tensor]:
    return [x for x in _pytree.tree_leaves(outputs) if isinstance(x, Tensor)]


def _close(x: Tensor, y: Tensor) -> bool:
    if not x.is_floating_point() or x.dtype != y.dtype or not x.numel():
        return x.dtype == y.dtype and torch.equal(x, y)
    scale = x.abs().nan_to_num(0.0, 0.0, 0.0).max().double() + 1e-6
    atol = _TOLERANCE.get(x.dtype, 1e-3) * float(scale)
    return torch.allclose(x, y, rtol=0.0, atol=atol, equal_nan=True)
