"""What follows a layer in a graph and can be done where it stores its result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx, nn

from nmsparsity.compression import steps
from nmsparsity.compression.batch_norm import Affine, affine
from nmsparsity.layers.plain import hooked


@dataclass
class Chain:
    """A layer's node and what follows it: batch norm, a sum, an activation, in this order.

    Attributes:
        nodes: the layer's node and all those the fused layer stands for, in the graph's order.
        norm: what batch norm does to each channel; the chain ends with it then, and goes on only
            when it is folded away.
        residual: what is added, and by which node.
        activation: the name of the activation at the end.
        stopped: why nothing more can be fused, in words.
    """

    nodes: list[fx.Node]
    norm: Affine | None = None
    residual: fx.Node | None = None
    total: fx.Node | None = None
    activation: str = "none"
    stopped: str = ""

    @property
    def fused(self) -> tuple[str, ...]:
        """What is fused besides batch norm."""
        last = () if self.activation == "none" else (self.activation,)
        return (("residual",) if self.residual is not None else ()) + last


@dataclass
class Finder:
    """Finds chains in one graph; a sum belongs to the first layer that asks for it.

    Args:
        graph: of a part of a model.
        places: in how many places of the model each module stands.
    """

    graph: fx.GraphModule
    places: Mapping[nn.Module, int]
    _claimed: set[fx.Node] = field(default_factory=set)

    def find(self, node: fx.Node) -> Chain:
        """The chain that begins at the node of a layer."""
        chain = Chain([node])
        chain.stopped = self._alone(node) or self._follow(chain)
        if chain.total is not None:
            self._claimed.add(chain.total)
        return chain

    def calls(self, layers: set[nn.Module]) -> list[tuple[fx.Node, nn.Module]]:
        """The calls of these layers, in the order of the graph; of several calls the first."""
        found: dict[nn.Module, fx.Node] = {}
        for node in self.graph.graph.nodes:
            module = steps.called(self.graph, node)
            if module is not None and module in layers:
                found.setdefault(module, node)
        return [(node, module) for module, node in found.items()]

    def _alone(self, node: fx.Node) -> str:
        """Why what follows the layer here cannot be made part of it."""
        module = steps.called(self.graph, node)
        assert module is not None
        calls = Counter(str(n.target) for n in self.graph.graph.nodes if n.op == "call_module")
        if calls[str(node.target)] > 1 or self.places[module] > 1:
            return "it is called more than once: what follows differs"
        if hooked(module):
            return "it has hooks, which must see what they see now"
        if len(node.args) != 1 or node.kwargs:
            return "it is not called with its input alone"
        return ""

    def _follow(self, chain: Chain) -> str:
        """Lengthen the chain as far as possible; why it ends."""
        while True:
            last = chain.nodes[-1]
            if len(last.users) != 1:
                return f"its result is used {len(last.users)} times"
            (user,) = last.users
            why = self._take(chain, last, user)
            if why is not None:
                return why

    def _take(self, chain: Chain, last: fx.Node, user: fx.Node) -> str | None:
        """Take one more node into the chain; else why not, "" where that needs no word."""
        norm = affine(self.graph, user, last) if chain.residual is None else None
        if norm is not None:
            if isinstance(norm, str):
                return norm
            chain.norm = norm
            chain.nodes.append(user)
            return ""
        if (name := steps.activation(self.graph, user)) is not None and user.args[0] is last:
            chain.activation = name
            chain.nodes.append(user)
            return ""
        elif chain.residual is None and steps.summands(user) is not None:
            why = self._add(chain, last, user)
            if why is not None:
                return why
        elif not (steps.does_nothing(self.graph, user) and user.args[0] is last):
            return "" if user.op == "output" else f"{_name(self.graph, user)} follows"
        chain.nodes.append(user)
        return None

    def _add(self, chain: Chain, last: fx.Node, user: fx.Node) -> str | None:
        """Take a sum into the chain: the other summand must be there, and nothing may change."""
        pair = steps.summands(user)
        assert pair is not None
        other = pair[1] if pair[0] is last else pair[0]
        if user in self._claimed:
            return "the sum that follows is fused into another layer"
        if steps.writes_to(user, other):
            return "the sum that follows writes into its other summand"
        if any(steps.may_write(self.graph, node) for node in _between(chain, user)):
            return "what happens before the sum that follows may change the input of the layer"
        chain.residual, chain.total = other, user
        return None


def _between(chain: Chain, end: fx.Node) -> list[fx.Node]:
    """The nodes after the layer's and before another, without those of the chain."""
    found, node = [], chain.nodes[0].next
    while node is not end:
        if node not in chain.nodes:
            found.append(node)
        node = node.next
    return found


def _name(graph: fx.GraphModule, node: fx.Node) -> str:
    module = steps.called(graph, node)
    if module is not None:
        return f"{type(module).__name__}{' with hooks' if hooked(module) else ''}"
    return str(getattr(node.target, "__name__", node.target))
