"""Which weights of a model are packed, and what is promised of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from nmsparsity.packed.smaller import pack_smaller, packable
from nmsparsity.packed.weight import PackedWeight
from nmsparsity.pattern import Axis, Pattern
from nmsparsity.promises import declared, pending
from nmsparsity.sites import Site, sites
from nmsparsity.targets import Patterns, Selection, Target, select


@dataclass(frozen=True)
class Choice:
    """A weight to pack, in which pattern, and whether that was promised or its zeros show it."""

    site: Site
    pattern: Pattern
    promised: bool

    def pack(self, weight: Tensor, name: str) -> PackedWeight | None:
        """The packed weight; None where plain is smaller.

        Raises:
            ValueError: naming the weight, where it is not N:M, or not yet.
        """
        waiting = pending().get(id(self.site.parameter))
        if waiting:
            raise ValueError(f"{name}: {waiting}; train on, or let go of it by sparsifier.remove()")
        return pack_smaller(weight, self.pattern, self.site.layout, name)


def choose(model: nn.Module, pattern: Patterns | None) -> dict[int, Choice]:
    """The weights to pack, by the identity of their parameter."""
    selected = {}
    if pattern is not None:
        targets = given(model, pattern).targets
        selected = {id(target.site.parameter): target.pattern for target in targets}
    chosen, known = {}, declared()
    for site in sites(model):
        parameter = site.parameter
        promised = known.get(id(parameter)) or selected.get(id(parameter))
        its = promised or packable(parameter, site.layout)
        if its is not None and not its.dense:
            chosen[id(parameter)] = Choice(site, its, promised is not None)
    return chosen


def given(model: nn.Module, pattern: Patterns, axis: Axis | None = None) -> Selection:
    """The weights that a pattern given to `verify` or `save` speaks of: those `prune` would choose.

    A weight whose axis is no multiple of M is one of them if it was padded, which a promise of
    that very pattern tells.
    """
    known = declared()
    chosen = select(model, pattern, remainder="pad", axis=axis)
    return chosen.without(lambda target: _why_not_whole(target, known))


def _why_not_whole(target: Target, known: Mapping[int, Pattern]) -> str | None:
    site, pattern = target.site, target.pattern
    length = site.layout.length(site.shape, pattern.axis)
    if length % pattern.m == 0 or known.get(id(site.parameter)) == pattern:
        return None
    return f"{length} weights along the {pattern.axis} axis are no multiple of {pattern.m}"
