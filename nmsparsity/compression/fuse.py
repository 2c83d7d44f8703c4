"""Graphs rewritten: batch norm folded away, sums and activations made part of packed layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx, nn

from nmsparsity.compression.batch_norm import fold
from nmsparsity.compression.chain import Chain, Finder
from nmsparsity.compression.swap import places
from nmsparsity.compression.trace import Traced


@dataclass
class Notes:
    """What is known about every layer: what was fused into it, and why no more."""

    fused: dict[nn.Module, tuple[str, ...]] = field(default_factory=dict)
    reasons: dict[nn.Module, str] = field(default_factory=dict)


def fold_batch_norms(
    model: nn.Module,
    traced: Traced,
    layers: set[nn.Module],
    ranks: Mapping[nn.Module, int | None],
    notes: Notes,
) -> None:
    """Fold the batch norm after every one of these layers into it, in place."""
    counts = places(model)
    for graph in traced.graphs.values():
        finder = Finder(graph, counts)
        for node, layer in finder.calls(layers):
            chain = finder.find(node)
            if chain.norm is None:
                continue
            why = fold(layer, chain.norm, ranks.get(layer))
            if why is not None:
                notes.reasons[layer] = why
                continue
            notes.fused[layer] = ("batch norm",)
            _erase(graph, chain, node)
        _tidy(graph)


def chains(model: nn.Module, traced: Traced, layers: set[nn.Module]) -> dict[nn.Module, Chain]:
    """What could be fused into each layer; of two that end in one sum, the later one has it."""
    counts, found = places(model), {}
    for graph in traced.graphs.values():
        finder = Finder(graph, counts)
        for node, layer in reversed(finder.calls(layers)):
            found[layer] = finder.find(node)
    return found


def fuse(graph: fx.GraphModule, chain: Chain) -> None:
    """Make a chain one call of its packed layer, in place.

    The call stands where the sum stood, so that the residual is there; without a sum, where the
    layer's stood.
    """
    call = chain.nodes[0]
    taken = (call.args[0], chain.residual, chain.activation)
    with graph.graph.inserting_before(chain.total or call):
        call = graph.graph.call_module(str(call.target), taken)
    _erase(graph, chain, call)
    _tidy(graph)


def _erase(graph: fx.GraphModule, chain: Chain, call: fx.Node) -> None:
    """Let one call stand for all the nodes of a chain."""
    chain.nodes[-1].replace_all_uses_with(call)
    for node in reversed(chain.nodes):
        if node is not call:
            graph.graph.erase_node(node)


def _tidy(graph: fx.GraphModule) -> None:
    for node in graph.graph.find_nodes(op="get_attr"):
        if not node.users:
            graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.recompile()
