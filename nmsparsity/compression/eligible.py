"""Which weights of a model are N:M and can be packed, and why not the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from nmsparsity.layers import PackedLayer
from nmsparsity.layers.attention import why_closed
from nmsparsity.layers.packing import why_no_device, why_not
from nmsparsity.layers.prepacked import PrepackedLinear
from nmsparsity.packed.infer import shown
from nmsparsity.packed.weight import DTYPES
from nmsparsity.pattern import Pattern
from nmsparsity.promises import declared
from nmsparsity.sites import Site, sites
from nmsparsity.targets import EXCLUDED, Rules, Selection, Target, select

_NO_PATTERN = "dense: it shows no pattern"


def eligible(model: nn.Module, include: Rules, exclude: Rules) -> Selection:
    """The weights to pack, each with its pattern, and the others with the reason.

    A weight's pattern is the one that `sparsify`, `prune` or `load` declared for it, else the one
    its zeros show. A dense weight shows none.

    Raises:
        ValueError: when no weight of the model is N:M, for a model with packed layers, and for
            rules that match nothing.
    """
    if any(isinstance(module, PackedLayer | PrepackedLinear) for module in model.modules()):
        raise ValueError(
            f"this {type(model).__name__} has packed layers already: nmsparsity.decompress it first"
        )
    found = {site.name: site for site in sites(model)}
    known = declared()
    seen = {name: _pattern(site, known) for name, site in found.items()}
    patterns = {name: pattern for name, pattern in seen.items() if pattern is not None}
    if not patterns:
        raise ValueError(
            f"no weight of this {type(model).__name__} is N:M, nothing can be packed: train it "
            "with nmsparsity.sparsify or prune it with nmsparsity.prune first"
        )
    given: dict[str, str | Pattern] = dict(patterns)
    selection = select(model, given, include=include, exclude=exclude, remainder="pad")
    reasons = {name: _NO_PATTERN for name in found if name not in patterns}
    uses, attention = _uses(model), _attention(model)
    decided = selection.without(lambda target: _why_not(target, uses, attention))
    return Selection(
        decided.targets,
        [
            entry
            if entry.reason == EXCLUDED
            else replace(entry, reason=reasons.get(entry.name, entry.reason))
            for entry in decided.skipped
        ],
    )


def _pattern(site: Site, known: Mapping[int, Pattern]) -> Pattern | None:
    parameter = site.parameter
    if parameter.dtype not in DTYPES or parameter.is_meta:
        return None
    return known.get(id(parameter)) or shown(parameter, site.layout)


def _uses(model: nn.Module) -> Counter[int]:
    """How many modules hold each parameter."""
    return Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )


def _attention(model: nn.Module) -> dict[int, nn.MultiheadAttention]:
    """The attention that reads the weight of a layer itself, by the identity of the layer."""
    found = [m for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    return {id(part): module for module in found for part in (module, module.out_proj)}


def _why_not(
    target: Target, uses: Counter[int], attention: dict[int, nn.MultiheadAttention]
) -> str | None:
    module = target.site.module
    if uses[id(target.site.parameter)] > 1:
        return "a tied weight: other layers use the same parameter"
    around = attention.get(id(module))
    if around is not None:
        closed = why_closed(around)
        return why_no_device(target.site.parameter.device) if closed is None else closed
    return why_not(module)
