"""A whole model in one packed file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nmsparsity.packed.file import Contents, read, write
from nmsparsity.packed.infer import infer
from nmsparsity.packed.storable import check_storable
from nmsparsity.packed.weight import DTYPES, PackedWeight
from nmsparsity.pattern import Pattern
from nmsparsity.promises import declare, declared, withdraw
from nmsparsity.sites import Site, canonical, sites, unwrap
from nmsparsity.targets import Patterns, select


@dataclass(frozen=True)
class SavedWeight:
    """One packed weight of a saved file: its pattern, and its bytes packed and dense."""

    name: str
    pattern: Pattern
    nbytes: int
    dense_nbytes: int


@dataclass(frozen=True)
class Saved:
    """What `save` wrote; prints as a sentence.

    Attributes:
        path: the file.
        nbytes: its size.
        dense_nbytes: the bytes of the same tensors, all dense.
        weights: the packed ones.
    """

    path: str
    nbytes: int
    dense_nbytes: int
    weights: tuple[SavedWeight, ...]

    def __str__(self) -> str:
        counts = Counter(str(weight.pattern) for weight in self.weights)
        kinds = ", ".join(f"{count} x {pattern}" for pattern, count in counts.most_common())
        share = self.nbytes / self.dense_nbytes if self.dense_nbytes else 1.0
        return (
            f"{self.path}: {self.nbytes:,} bytes, {share:.1%} of {self.dense_nbytes:,} dense; "
            f"{len(self.weights)} weights packed{f' ({kinds})' if kinds else ''}"
        )


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    pattern: Patterns | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Saved:
    """Write the model's whole ``state_dict`` to one file, its N:M weights packed; loss-free.

    A weight's pattern is the one that `sparsify`, `prune` or `load` declared for it; else the one
    given here; else the one its zeros show, if that makes it smaller. The rest is stored as it
    is. Tied tensors are stored once.

    Args:
        model: any module; ``torch.compile`` and DDP wrappers are looked through.
        path: an existing file is replaced once the new one is complete.
        pattern: ``"2:4"`` or ``{rule: "2:4"}`` for weights without a declared one, chosen as
            `prune` chooses them.
        metadata: text by key, to come back from `load`.

    Raises:
        ValueError: naming the layer and its first bad group, where a declared or given pattern
            does not hold (nothing is pruned here); naming the entry, where the ``state_dict`` has
            something that is no tensor.
    """
    entries = _entries(model)
    for name, tensor in entries.items():
        check_storable(name, tensor)
    chosen = _patterns(model, pattern)
    packed: dict[str, PackedWeight] = {}
    of: dict[int, PackedWeight] = {}
    for name, tensor in entries.items():
        if id(tensor) in chosen:
            if id(tensor) not in of:
                site, its = chosen[id(tensor)]
                of[id(tensor)] = PackedWeight.pack(tensor, its, site.layout, name)
            packed[name] = of[id(tensor)]
    plain = {name: tensor for name, tensor in entries.items() if name not in packed}
    nbytes = write(path, packed, plain, metadata)
    once = {id(tensor): tensor.nbytes for tensor in entries.values()}
    weights = tuple(
        SavedWeight(weight.name, weight.pattern, weight.nbytes, weight.dense_nbytes)
        for weight in of.values()
    )
    return Saved(os.fspath(path), nbytes, sum(once.values()), weights)


def load(path: str | os.PathLike[str], model: nn.Module) -> dict[str, str]:
    """Read a packed file into a model of the same architecture, in place; all or nothing.

    The patterns in the file are declared for the weights, so that `verify` and `save` know them;
    what `prune` or `load` promised of the others before ends. What a sparsifier keeps stays its
    own. Ties, devices and memory formats stay as the model has them.

    Returns:
        The metadata given to `save`.

    Raises:
        PackedFileError: for a file that is damaged or not one of ours.
        ValueError: listing every missing or unexpected name, wrong shape and wrong dtype; the
            model is unchanged then.
    """
    contents = read(path)
    entries, found = _entries(model), {site.name: site for site in sites(model)}
    problems = [*_differences(contents, entries, found), *_broken_ties(contents, entries)]
    if problems:
        listed = "\n  ".join(problems)
        raise ValueError(
            f"{os.fspath(path)} does not fit this model; nothing was loaded:\n  {listed}"
        )
    dense = {id(weight): weight.unpack() for weight in contents.packed.values()}
    unpacked = {name: dense[id(weight)] for name, weight in contents.packed.items()}
    values = contents.tensors | unpacked
    inner = unwrap(model)
    inner.load_state_dict({name: values[canonical(name)] for name in inner.state_dict()})
    packed = contents.packed
    withdraw(found.values())
    declare({site: packed[name].pattern for name, site in found.items() if name in packed})
    return contents.metadata


def _entries(model: nn.Module) -> dict[str, Any]:
    """The state of the model inside its wrappers, parameters themselves, by canonical name."""
    state = unwrap(model).state_dict(keep_vars=True)
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and is_lazy(tensor):
            raise ValueError(f"{name!r} has no shape yet: run the model once, then call again")
    return {canonical(name): tensor for name, tensor in state.items()}


def _patterns(model: nn.Module, given: Patterns | None) -> dict[int, tuple[Site, Pattern]]:
    """The weights to pack, by the identity of their parameter."""
    selected = {}
    if given is not None:
        targets = select(model, given, remainder="pad").targets
        selected = {id(target.site.parameter): target.pattern for target in targets}
    chosen, promised = {}, declared()
    for site in sites(model):
        key = id(site.parameter)
        pattern = promised.get(key) or selected.get(key) or _inferred(site)
        if pattern is not None and not pattern.dense:
            chosen[key] = (site, pattern)
    return chosen


def _inferred(site: Site) -> Pattern | None:
    return infer(site.parameter, site.layout) if site.parameter.dtype in DTYPES else None


def _differences(
    contents: Contents, entries: dict[str, Any], found: dict[str, Site]
) -> Iterator[str]:
    """What keeps the file from fitting the model, one sentence each."""
    stored = {name: (tuple(t.shape), t.dtype) for name, t in contents.tensors.items()}
    stored |= {name: (w.shape, w.values.dtype) for name, w in contents.packed.items()}
    for name in entries:
        if name not in stored:
            yield f"{name!r} is missing in the file"
    for name, (shape, dtype) in stored.items():
        if name not in entries:
            yield f"{name!r} is in the file, but not in the model"
            continue
        tensor = entries[name]
        if not isinstance(tensor, Tensor):
            yield f"{name!r} is a {type(tensor).__name__} in the model, a tensor in the file"
        elif tensor.is_meta:
            yield f"{name!r} is on the meta device: call model.to_empty(device='cpu') first"
        elif (tuple(tensor.shape), tensor.dtype) != (shape, dtype):
            yield (
                f"{name!r} is {dtype} {list(shape)} in the file, "
                f"{tensor.dtype} {list(tensor.shape)} in the model"
            )
    for name, weight in contents.packed.items():
        if name in found and weight.layout != found[name].layout:
            yield f"{name!r} has {weight.layout} in the file, {found[name].layout} in the model"


def _broken_ties(contents: Contents, entries: dict[str, Any]) -> Iterator[str]:
    """Names that share one tensor in the model, but not in the file."""
    stored: dict[str, Any] = {**contents.tensors, **contents.packed}
    first: dict[int, str] = {}
    for name, tensor in entries.items():
        tied = first.setdefault(id(tensor), name)
        if tied in stored and name in stored and not _same(stored[tied], stored[name]):
            yield f"{name!r} and {tied!r} are tied in the model, but differ in the file"


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    dense = [t.unpack() if isinstance(t, PackedWeight) else t for t in (one, other)]
    return torch.equal(*dense)
