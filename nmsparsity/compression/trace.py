"""The largest parts of a model whose computation can be written down as a graph."""

from __future__ import annotations

import inspect
import operator
import warnings
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree

from nmsparsity.compression.check import first_line
from nmsparsity.compression.steps import activation_of
from nmsparsity.layers import PackedMultiheadAttention
from nmsparsity.layers.plain import hooked

_NORM = "FrozenBatchNorm2d"
_EVERY = vars(fx.GraphModule(nn.Module(), fx.Graph())).keys()


@dataclass
class Traced:
    """What could be traced, and why the rest could not.

    Attributes:
        graphs: a module -> its graph, which calls the module's own submodules.
        reasons: a layer outside all graphs -> why.
        read: layers whose weight is used by others, which would read a packed one dense.
    """

    graphs: dict[nn.Module, fx.GraphModule] = field(default_factory=dict)
    reasons: dict[nn.Module, str] = field(default_factory=dict)
    read: set[nn.Module] = field(default_factory=set)


class Tracer(fx.Tracer):
    """Follows a forward down to layers of torch, to the given layers, and to hooked modules."""

    def __init__(self, leaves: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        self.leaves = set(leaves)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a call of this module is one step of the graph."""
        return (
            m in self.leaves
            or isinstance(m, (PackedMultiheadAttention, torch.jit.ScriptModule))
            or type(m).__name__ == _NORM
            or activation_of(m) is not None
            or "forward" in vars(m)
            or hooked(m)
            or super().is_leaf_module(m, module_qualified_name)
        )


def trace(
    model: nn.Module,
    layers: Iterable[nn.Module],
    *,
    whole: bool = True,
    called: Container[nn.Module] | None = None,
) -> Traced:
    """Trace the model, or else the largest of its submodules that can be traced.

    Only what holds one of the layers is tried. A module whose forward takes optional arguments is
    not: a graph knows one way through it, and which arguments are given is not known. Unless
    ``whole``, the model itself is not tried, only what is inside. Where it is known which modules
    are ``called``, others are not tried: a sequence whose layers are called one by one stays one.

    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    ...     def forward(self, x, mask=None):
    ...         return self.body(x) if mask is None else x
    >>> net = Net()
    >>> [type(module).__name__ for module in trace(net, [net.body[0]]).graphs]
    ['Sequential']
    """
    traced, known, seen = Traced(), set(layers), set[nn.Module]()
    if whole:
        _visit(model, known, traced, seen, called)
        return traced
    seen.add(model)
    why = f"{type(model).__name__} is used by a function, which may need more than its forward"
    traced.reasons.update(dict.fromkeys(known.intersection(model.modules()), why))
    for child in model.children():
        _visit(child, known, traced, seen, called)
    return traced


def _visit(
    module: nn.Module,
    layers: set[nn.Module],
    traced: Traced,
    seen: set[nn.Module],
    called: Container[nn.Module] | None,
) -> None:
    inside = [layer for layer in module.modules() if layer in layers]
    if module in seen or module in layers or not inside:
        return
    seen.add(module)
    idle = called is not None and module not in called
    why = f"nothing calls the {type(module).__name__} around it" if idle else _why_not(module)
    result = why or _graph(module, layers)
    if isinstance(result, str):
        traced.reasons.update(dict.fromkeys(inside, result))
        below: Iterable[nn.Module] = module.children()
    else:
        traced.graphs[module] = result
        traced.read |= _keep_read(module, result, layers)
        calls = {str(node.target) for node in result.graph.nodes if node.op == "call_module"}
        below = [result.get_submodule(target) for target in sorted(calls)]
        for layer in inside:
            traced.reasons.pop(layer, None)
    for child in below:
        _visit(child, layers, traced, seen, called)


def _why_not(module: nn.Module) -> str | None:
    kind = type(module).__name__
    if isinstance(module, PackedMultiheadAttention):
        return "inside attention nothing follows it that could be fused"
    if hooked(module):
        return f"{kind} has hooks, which must see what they see now"
    if "forward" in vars(module) or isinstance(module, torch.jit.ScriptModule):
        return f"{kind} has a forward that is not its class's"
    taken = inspect.signature(module.forward).parameters.values()
    optional = [
        p.name
        for p in taken
        if p.default is not p.empty or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    if optional:
        names = ", ".join(optional[:3])
        return f"{kind}.forward takes optional arguments ({names}): which way it goes is not known"
    return None


def _graph(module: nn.Module, layers: set[nn.Module]) -> fx.GraphModule | str:
    """The graph of one module, or why there is none."""
    kind = type(module).__name__
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = Tracer(layers).trace(module)
    except Exception as error:  # What a foreign forward does with a proxy is beyond any list.
        return f"{kind}.forward cannot be traced: {first_line(error)}"
    _drop_rank_checks(graph)
    _drop_unused(graph)
    made = fx.GraphModule(module, graph, class_name=kind).eval()
    parts = dict(made.named_modules())
    for name, part in module.named_modules():
        if name in parts and parts[name] is not part:
            _keep_rest(part, parts[name])
    # What a deep copy of a graph takes along besides modules and tensors.
    made.meta["_user_preserved_attributes"] = _rest(module)
    return made


def _keep_rest(module: nn.Module, traced: nn.Module) -> None:
    """Let what stands for a module have its settings and unused tensors: others may read them."""
    for name in ("_parameters", "_buffers"):
        vars(traced)[name] = {**vars(module)[name], **vars(traced)[name]}
    traced._non_persistent_buffers_set |= module._non_persistent_buffers_set
    vars(traced).update(_rest(module))


def _rest(module: nn.Module) -> dict[str, Any]:
    """What a module holds that is no part of every module, and holds no module itself."""
    return {
        name: value
        for name, value in vars(module).items()
        if name not in _EVERY and not any(map(_holds_a_module, _pytree.tree_leaves(value)))
    }


def _holds_a_module(value: object) -> bool:
    return isinstance(getattr(value, "__self__", value), nn.Module)


def _keep_read(module: nn.Module, graph: fx.GraphModule, layers: set[nn.Module]) -> set[nn.Module]:
    """The layers whose own tensors the graph uses; they stay layers in it, in place."""
    known, used = dict(module.named_modules(remove_duplicate=False)), set()
    for node in graph.graph.find_nodes(op="get_attr"):
        owner = str(node.target).rpartition(".")[0]
        layer = known.get(owner)
        if layer in layers:
            parent, _, name = owner.rpartition(".")
            graph.get_submodule(parent)._modules[name] = layer
            if not all(_asks(user) for user in node.users):
                used.add(layer)
    return used


def _asks(node: fx.Node) -> bool:
    """Whether a node only asks a tensor what it is."""
    named = node.args[1] if node.target is getattr else node.target
    return named in ("dtype", "device", "shape", "ndim", "size", "dim")


def _drop_rank_checks(graph: fx.Graph) -> None:
    """Without ``assert x.ndim == 4``, so that a layer's result has one user, its batch norm.

    The layer itself refuses an input of another rank.
    """
    for check in graph.find_nodes(op="call_function", target=torch._assert):
        equal = check.args[0]
        if not isinstance(equal, fx.Node) or equal.target is not operator.eq:
            continue
        rank = equal.args[0]
        if isinstance(rank, fx.Node) and rank.target is getattr and rank.args[1] == "ndim":
            graph.erase_node(check)
            if not equal.users:
                graph.erase_node(equal)


def _drop_unused(graph: fx.Graph) -> None:
    """Without reading what nothing uses: a graph does not ask whether a weight is a tensor."""
    for read in reversed(graph.nodes):
        if (read.op == "get_attr" or read.target is getattr) and not read.users:
            graph.erase_node(read)
