"""A compressed model to plain modules again."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from nmsparsity.compression.swap import swap
from nmsparsity.layers import PackedLayer, PackedMultiheadAttention
from nmsparsity.layers.fast_path import take_fast_paths
from nmsparsity.layers.plain import keep_hooks
from nmsparsity.layers.prepacked import PrepackedLinear
from nmsparsity.promises import Place, carry_over, declare, declared

_CALLS: dict[str, tuple[Any, dict[str, str]]] = {
    "relu": (functional.relu, {}),
    "gelu": (functional.gelu, {}),
    "gelu_tanh": (functional.gelu, {"approximate": "tanh"}),
    "silu": (functional.silu, {}),
}


@torch.no_grad()
def decompress(model: nn.Module) -> nn.Module:
    """A new model of plain torch modules that computes what a compressed one does.

    The weights are the same bit for bit; where batch norm was folded they are the folded ones,
    and stay N:M. What was fused into a layer is a step of its own again. Promises are made again:
    `nmsparsity.verify` and `nmsparsity.save` know the patterns.

    >>> from nmsparsity.compression import compress
    >>> from nmsparsity.pruning import prune
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    >>> _ = prune(model, "2:4")
    >>> plain = decompress(compress(model, backend="reference"))
    >>> bool((plain.get_submodule("0").weight == model[0].weight).all())
    True
    """
    memo: dict[int, Any] = {}
    given, model = model, copy.deepcopy(model, memo)
    for module in model.modules():
        if isinstance(module, fx.GraphModule):
            _unfuse(module)
    plain = {m: _plain(m) for m in model.modules() if isinstance(m, PackedLayer)}
    model = swap(model, plain)  # type: ignore[arg-type]
    again = {m: m.plain() for m in model.modules() if isinstance(m, PrepackedLinear)}
    model = swap(model, again)  # type: ignore[arg-type]
    carry_over(given, memo, {id(m): plain for m, plain in again.items()})
    attention = [m for m in model.modules() if isinstance(m, PackedMultiheadAttention)]
    model = swap(model, {module: _closed(module) for module in attention})
    take_fast_paths(model)
    return model


def _unfuse(graph: fx.GraphModule) -> None:
    """Make what packed layers do besides steps of their own, in place."""
    for node in list(graph.graph.nodes):
        layer = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, PackedLayer) and len(node.args) == 3:
            _unfold(graph.graph, node)
    graph.recompile()


def _unfold(graph: fx.Graph, node: fx.Node) -> None:
    """One call of a packed layer to the layer's, the sum's and the activation's."""
    x, residual, activation = node.args
    with graph.inserting_before(node):
        last = graph.call_module(str(node.target), (x,))
        if residual is not None:
            last = graph.call_function(operator.add, (last, residual))
        if activation != "none":
            function, options = _CALLS[str(activation)]
            last = graph.call_function(function, (last,), dict(options))
    node.replace_all_uses_with(last)
    graph.erase_node(node)


def _plain(layer: PackedLayer) -> nn.Module:
    plain = layer.plain()
    keep_hooks(layer, plain)
    declare({Place(plain, "weight"): layer.problem.pattern})
    return plain


def _closed(attention: PackedMultiheadAttention) -> nn.Module:
    plain = attention.plain()
    keep_hooks(attention, plain)
    homes = {"in_proj_weight": "q_proj", "out_proj.weight": "out_proj"}
    homes |= {f"{name}_weight": name for name in ("q_proj", "k_proj", "v_proj")}
    known = declared()
    for name, home in homes.items():
        pattern = known.get(id(attention.get_parameter(f"{home}.weight")))
        path, _, attribute = name.rpartition(".")
        place = Place(plain.get_submodule(path), attribute)
        if pattern is not None and attribute in place.module._parameters:
            declare({place: pattern})
    return plain
