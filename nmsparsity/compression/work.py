"""A copy of a model, opened up so that every eligible weight is the weight of one layer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from nmsparsity.compression.swap import swap
from nmsparsity.layers import PackedMultiheadAttention
from nmsparsity.layers.plain import keep_hooks
from nmsparsity.pattern import Pattern
from nmsparsity.promises import Place, carry_over, declare
from nmsparsity.sites import Site
from nmsparsity.targets import Target

_PARTS = {
    "in_proj_weight": ("q_proj", "k_proj", "v_proj"),
    "q_proj_weight": ("q_proj",),
    "k_proj_weight": ("k_proj",),
    "v_proj_weight": ("v_proj",),
}


@dataclass(frozen=True)
class Layer:
    """A layer of the copy: its name, its pattern."""

    name: str
    pattern: Pattern


@dataclass
class Work:
    """What `compress` works on.

    Attributes:
        model: the copy, in eval mode.
        layers: the layers to pack.
        opened: attention by layers -> the attention it stands for.
    """

    model: nn.Module
    layers: dict[nn.Module, Layer] = field(default_factory=dict)
    opened: dict[nn.Module, nn.MultiheadAttention] = field(default_factory=dict)


def copied(model: nn.Module, targets: Sequence[Target]) -> Work:
    """The work on a copy of a model; the model itself stays as it is.

    The copy's parameters are promised the same patterns, also where they stay dense.
    """
    memo: dict[int, object] = {}
    work = Work(copy.deepcopy(model, memo).eval().requires_grad_(False))
    carry_over(model, memo)
    attention = {m.out_proj: m for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    new: dict[nn.Module, PackedMultiheadAttention] = {}
    for target in targets:
        site = target.site
        module = _copy_of(memo, site.module)
        declare({Place(module, site.attribute): target.pattern})
        around = attention.get(site.module, site.module)  # type: ignore[call-overload]
        if not isinstance(around, nn.MultiheadAttention):
            work.layers[module] = Layer(site.module_name, target.pattern)
            continue
        plain = _copy_of(memo, around)
        assert isinstance(plain, nn.MultiheadAttention)
        if plain not in new:
            new[plain] = PackedMultiheadAttention(plain)
            keep_hooks(plain, new[plain])
            work.opened[new[plain]] = plain
        for name, part in _parts(site):
            work.layers[new[plain].get_submodule(part)] = Layer(name, target.pattern)
    work.model = swap(work.model, dict(new))
    return work


def _copy_of(memo: dict[int, object], module: nn.Module) -> nn.Module:
    found = memo[id(module)]
    assert isinstance(found, nn.Module)
    return found


def _parts(site: Site) -> list[tuple[str, str]]:
    """The names of the layers that one weight of attention becomes, in the model and in it."""
    if site.attribute == "weight":
        return [(site.module_name, "out_proj")]
    prefix = f"{site.module_name}." if site.module_name else ""
    return [(f"{prefix}{part}", part) for part in _PARTS[site.attribute]]
