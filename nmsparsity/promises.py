"""What is promised about the weights of a model: which pattern each follows, and who keeps it so.

A promise is about a place, an attribute of a module, whatever Parameter stands there: FSDP2 and
``load_state_dict(assign=True)`` put others in. A weak reference to the parameter itself would keep
torch from moving it: `torch.utils.swap_tensors`, which casts a DTensor, refuses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar
from weakref import WeakSet

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from nmsparsity.pattern import Pattern
from nmsparsity.sites import Site


class Keeper(Protocol):
    """Keeps one parameter N:M as long as it lives.

    Attributes:
        pending: why the parameter is not N:M yet; empty when it is.
    """

    parameter: nn.Parameter
    pending: str


@dataclass(frozen=True, eq=False)
class Place:
    """An attribute of a module; a `Site` is one, too."""

    module: nn.Module
    attribute: str


P = TypeVar("P", bound=Site | Place)

# {module: {attribute: Pattern}}; modules by identity, as not all of them can be hashed.
_patterns = WeakIdKeyDictionary()  # type: ignore[no-untyped-call]
_keepers: WeakSet[Keeper] = WeakSet()


def declare(patterns: Mapping[P, Pattern]) -> None:
    """Note what these weights are promised to follow, but for those that a keeper keeps."""
    free = _not_kept(patterns)
    withdraw(free)
    for site in free:
        _patterns.setdefault(site.module, {})[site.attribute] = patterns[site]  # type: ignore[no-untyped-call]


def carry_over(
    model: nn.Module, copies: Mapping[int, object], instead: Mapping[int, nn.Module] | None = None
) -> None:
    """Promise of a copy what was promised of the model.

    Args:
        model: the model that was copied.
        copies: of the modules, by the identity of the module: the memo of ``copy.deepcopy``.
        instead: what stands in the place of some of the copies, by identity.
    """
    known = declared()
    for module in model.modules():
        copied = copies.get(id(module))
        copied = (instead or {}).get(id(copied), copied)
        for name, parameter in module._parameters.items():
            if id(parameter) in known and isinstance(copied, nn.Module):
                declare({Place(copied, name): known[id(parameter)]})


def declared() -> dict[int, Pattern]:
    """The promised patterns, by the identity of the parameters that stand in those places now."""
    found = ((_held(module, attribute), its[attribute]) for module, its, attribute in _places())
    return {id(parameter): pattern for parameter, pattern in found if parameter is not None}


def withdraw(sites: Iterable[P]) -> None:
    """End what is promised about these weights, but for those that a keeper keeps.

    Under all its names, where a parameter stands in several places.
    """
    free = _not_kept(sites)
    for site in free:
        _patterns.get(site.module, {}).pop(site.attribute, None)  # type: ignore[no-untyped-call]
    held = (_held(site.module, site.attribute) for site in free)
    ended = {id(parameter) for parameter in held if parameter is not None}
    for module, its, attribute in _places():
        if id(_held(module, attribute)) in ended:
            del its[attribute]


def claim(keeper: Keeper) -> None:
    """Note who keeps a parameter N:M."""
    _keepers.add(keeper)


def release(keeper: Keeper) -> None:
    """This one keeps its parameter no longer."""
    _keepers.discard(keeper)


def free(parameters: Iterable[nn.Parameter]) -> None:
    """Nobody keeps these parameters any longer; what is promised about them stays."""
    freed = {id(parameter) for parameter in parameters}
    for keeper in list(_keepers):
        if id(keeper.parameter) in freed:
            release(keeper)


def claimed() -> set[int]:
    """The parameters that someone alive keeps N:M, by identity."""
    return {id(keeper.parameter) for keeper in _keepers}


def pending() -> dict[int, str]:
    """Why kept parameters are not N:M yet, by their identity; those that are do not appear."""
    return {id(keeper.parameter): keeper.pending for keeper in _keepers if keeper.pending}


def _not_kept(sites: Iterable[P]) -> list[P]:
    kept = claimed()
    return [site for site in sites if id(_held(site.module, site.attribute)) not in kept]


def _places() -> Iterator[tuple[nn.Module, dict[str, Pattern], str]]:
    """Every place with a promise: module, the promises of that module, attribute."""
    for module, its in _patterns.items():  # type: ignore[no-untyped-call]
        for attribute in list(its):
            yield module, its, attribute


def _held(module: nn.Module, attribute: str) -> nn.Parameter | None:
    return module._parameters.get(attribute)
