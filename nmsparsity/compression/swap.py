"""Modules of a model replaced by others, wherever they stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import nn


def swap(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put new modules in the place of old ones, in place; the model itself may be one of them.

    A module that stands in several places is replaced in all of them.

    >>> relu, gelu = nn.ReLU(), nn.GELU()
    >>> swap(nn.Sequential(relu, relu), {relu: gelu})
    Sequential(
      (0): GELU(approximate='none')
      (1): GELU(approximate='none')
    )
    """
    model = new.get(model, model)
    seen: set[nn.Module] = set()
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        for name, child in module._modules.items():
            if child is not None:
                module._modules[name] = new.get(child, child)
                waiting.append(new.get(child, child))
    return model


def places(model: nn.Module) -> Counter[nn.Module]:
    """In how many places each module stands: how many modules hold it, under how many names."""
    return Counter(
        child
        for module in model.modules()
        for child in module._modules.values()
        if child is not None
    )
