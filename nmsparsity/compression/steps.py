"""What one node of a graph does, as far as a packed layer could do it too."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from nmsparsity.layers.plain import hooked

_PURE = ("torch.", "torchvision.ops.", "nmsparsity.layers.")
_ADDS = (operator.add, torch.add, "add")
_ADDS_IN_PLACE = (operator.iadd, "add_")
_RELU = (functional.relu, torch.relu, torch.relu_, functional.relu_, "relu", "relu_")
_GELU = {"none": "gelu", "tanh": "gelu_tanh"}
_HUGGING_FACE = dict.fromkeys(("NewGELUActivation", "GELUTanh"), "gelu_tanh")
_DROPOUT = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.Identity,
)


def called(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a node calls, if it calls one."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def does_nothing(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node hands on its input in eval mode: dropout and identity."""
    module = called(graph, node)
    if module is not None:
        return type(module) in _DROPOUT and not module.training and not hooked(module)
    if node.target is functional.dropout:
        return node.kwargs.get("training", True) is False and len(node.args) == 1
    named = getattr(node.target, "__name__", "")
    return (
        node.op == "call_function"
        and named == "stochastic_depth"
        and _argument(node, 3, "training") is False
    )


def activation(graph: fx.GraphModule, node: fx.Node) -> str | None:
    """The name of the activation that a node applies, or None.

    Names are those of `nmsparsity.kernels.epilogue`.
    """
    module = called(graph, node)
    if module is not None:
        return None if hooked(module) else activation_of(module)
    if node.op not in ("call_function", "call_method") or len(node.args) > 2:
        return None
    if node.target in _RELU:
        return "relu"
    if node.target is functional.silu:
        return "silu"
    if node.target is functional.gelu:
        return _GELU.get(str(node.kwargs.get("approximate", "none")))
    return None


def activation_of(module: nn.Module) -> str | None:
    """The name of the activation that a module is, or None.

    Hugging Face writes the approximate GELU of GPT-2 as eight operations; it is known by name.
    """
    if type(module) is nn.GELU:
        return _GELU.get(module.approximate)
    if type(module).__module__ == "transformers.activations":
        return _HUGGING_FACE.get(type(module).__name__)
    return {nn.ReLU: "relu", nn.SiLU: "silu"}.get(type(module))  # type: ignore[call-overload, no-any-return]


def summands(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The two values that a node adds, if it adds two different ones and writes to the first at
    most; None for everything else, also for a sum that scales one of them (``alpha``)."""
    if node.target not in (*_ADDS, *_ADDS_IN_PLACE) or len(node.args) != 2 or node.kwargs:
        return None
    first, second = node.args
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node) or first is second:
        return None
    return first, second


def writes_to(node: fx.Node, value: fx.Node) -> bool:
    """Whether this sum is in place, on the given summand."""
    return node.target in _ADDS_IN_PLACE and node.args[0] is value


def may_write(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node could change a tensor that others still read; in doubt yes."""
    module = called(graph, node)
    if module is not None:
        inplace = any(getattr(part, "inplace", False) for part in module.modules())
        return inplace or hooked(module) or not type(module).__module__.startswith(_PURE)
    if node.op == "call_method":
        return str(node.target).endswith("_")
    if node.op != "call_function":
        return False
    if node.kwargs.get("inplace") or "out" in node.kwargs or node.target is operator.setitem:
        return True
    name = getattr(node.target, "__name__", "")
    if name.endswith("_"):
        return True
    if getattr(operator, name, None) is node.target:
        return name.startswith("i")
    return not _is_pure(node.target, name)


def _is_pure(function: Any, name: str) -> bool:
    """Whether it is a function of torch or Python: those that write say so in their name."""
    home = getattr(function, "__module__", None) or ""
    return function is getattr or getattr(torch, name, None) is function or home.startswith(_PURE)


def _argument(node: fx.Node, position: int, name: str) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name)
