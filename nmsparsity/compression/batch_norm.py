"""Batch norm in eval mode as what it is: a factor and a shift for every channel."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from nmsparsity.compression.steps import called
from nmsparsity.layers.plain import hooked

_TYPES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Affine:
    """``x * scale + shift`` for every channel, in fp64."""

    scale: Tensor
    shift: Tensor
    dtype: torch.dtype


def affine(graph: fx.GraphModule, node: fx.Node, value: fx.Node) -> Affine | str | None:
    """The batch norm that a node applies to a value; why it cannot be folded; None for others."""
    module = called(graph, node)
    if module is not None:
        return _of_module(module)
    if node.target is functional.batch_norm and node.args and node.args[0] is value:
        return _of_call(graph, node)
    return None


def _of_module(module: nn.Module) -> Affine | str | None:
    frozen = type(module).__name__ == "FrozenBatchNorm2d"
    if not frozen and type(module) not in _TYPES:
        return None
    if hooked(module):
        return "the batch norm that follows has hooks, which must see what they see now"
    if module.running_mean is None or module.running_var is None:
        return "the batch norm that follows has no running statistics: it takes those of the batch"
    held: Any = module
    parts = (held.running_mean, held.running_var, held.weight, held.bias, held.eps)
    return _affine(*parts)


def _of_call(graph: fx.GraphModule, node: fx.Node) -> Affine | str:
    """``functional.batch_norm(x, mean, var, weight, bias, training, momentum, eps)``."""
    names = ("x", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    if given.get("training"):
        return "the batch norm that follows takes the statistics of the batch"
    held = [given.get(name) for name in names[1:5]]
    if any(isinstance(h, fx.Node) and h.op != "get_attr" for h in held) or None in held[:2]:
        return "the batch norm that follows computes its statistics"
    mean, var, weight, bias = (
        attrgetter(str(h.target))(graph) if isinstance(h, fx.Node) else None for h in held
    )
    return _affine(mean, var, weight, bias, float(given.get("eps", 1e-5)))  # type: ignore[arg-type]


def _affine(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Affine:
    scale = (var.detach().double() + eps).rsqrt()
    scale = scale if weight is None else scale * weight.detach().double()
    shift = -mean.detach().double() * scale
    shift = shift if bias is None else shift + bias.detach().double()
    return Affine(scale, shift, mean.dtype)


def fold(layer: nn.Module, norm: Affine, rank: int | None) -> str | None:
    """Multiply a layer's weight, and shift its bias, by the batch norm after it, in place.

    Zeros stay zeros: a folded weight follows the same pattern. Computed in fp64, rounded once.

    Args:
        layer: a linear layer or convolution, ``[out, in, ...]``.
        norm: of as many channels as the layer has outputs.
        rank: the dimensions of the layer's input, where known.

    Returns:
        Why it was not folded, and then nothing has changed; None when it was.
    """
    weight, bias = layer._parameters["weight"], layer._parameters["bias"]
    assert weight is not None
    if norm.dtype != weight.dtype or len(norm.scale) != len(weight):
        return "the batch norm that follows has another dtype or number of channels"
    why = _why_other_channels(layer, rank)
    if why is not None:
        return why
    factor = norm.scale.reshape(-1, *[1] * (weight.dim() - 1))
    new_weight = (weight.detach().double() * factor).to(weight.dtype)
    before = 0.0 if bias is None else bias.detach().double()
    new_bias = (norm.scale * before + norm.shift).to(weight.dtype)
    if not bool(torch.isfinite(new_weight).all() and torch.isfinite(new_bias).all()):
        return "folding the batch norm that follows would give infinite or undefined weights"
    layer._parameters["weight"] = nn.Parameter(new_weight, requires_grad=False)
    layer._parameters["bias"] = nn.Parameter(new_bias, requires_grad=False)
    return None


def _why_other_channels(layer: nn.Module, rank: int | None) -> str | None:
    """Why the norm's channels may not be the layer's outputs, for inputs of this rank."""
    if isinstance(layer, nn.Conv2d) or (isinstance(layer, nn.Conv1d) and rank != 2):
        return None
    if isinstance(layer, nn.Linear) and rank == 2:
        return None
    return (
        f"batch norm after a {type(layer).__name__} is folded only where example_inputs show that "
        "its channels are the outputs of the layer"
    )
