"""A plain layer without its numbers: what a packed one remembers to become plain again."""

from __future__ import annotations

import copy
from collections import OrderedDict

from torch import Tensor, nn

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def hooked(module: nn.Module) -> bool:
    """Whether somebody listens to this module's inputs, outputs or gradients."""
    return any(getattr(module, kind, None) for kind in HOOKS)


def keep_hooks(source: nn.Module, target: nn.Module) -> None:
    """Let the hooks of one module hang on another, in place."""
    for name, value in vars(source).items():
        if "_hooks" in name and isinstance(value, dict) and value:
            vars(target)[name] = value


def skeleton(module: nn.Module) -> nn.Module:
    """A copy of a layer with its settings, without parameters and hooks.

    >>> skeleton(nn.Linear(4, 8))
    Linear(in_features=4, out_features=8, bias=False)
    """
    bare = copy.copy(module)
    for name, value in vars(module).items():
        if "_hooks" in name and isinstance(value, dict):
            vars(bare)[name] = OrderedDict()
    bare._parameters = dict.fromkeys(module._parameters)
    return bare


def restore(bare: nn.Module, weight: Tensor, bias: nn.Parameter | None) -> nn.Module:
    """A new plain layer from its `skeleton`, with these numbers and in no training mode."""
    module = skeleton(bare)
    module._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    module._parameters["bias"] = bias
    return module.eval()
