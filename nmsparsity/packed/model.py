"""A whole model in one packed file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nmsparsity.packed.choice import choose
from nmsparsity.packed.file import read, write
from nmsparsity.packed.fit import problems
from nmsparsity.packed.storable import check_storable
from nmsparsity.pattern import Pattern
from nmsparsity.promises import declare, withdraw
from nmsparsity.sites import canonical, sites, unwrap
from nmsparsity.targets import Patterns


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
    given here; else the one its zeros show. The rest, and what packing would not make smaller, is
    stored as it is. Tied tensors are stored once. The file promises the declared and the given
    patterns; zeros alone are no promise.

    Args:
        model: any module; ``torch.compile`` and DDP wrappers are looked through.
        path: an existing file is replaced once the new one is complete.
        pattern: ``"2:4"`` or ``{rule: "2:4"}`` for weights without a declared one, chosen as
            `prune` chooses them.
        metadata: text by key, to come back from `load`.

    Raises:
        ValueError: naming the layer and its first bad group, where a declared or given pattern
            does not hold (nothing is pruned here); naming the entry, where the ``state_dict`` has
            something that is no tensor; naming the layer, where `nmsparsity.compress` packed it.
        OSError: naming the path, where it cannot be written.
    """
    _check_model(model, "save(model, path)")
    _check_plain(model)
    entries = _entries(model)
    for name, tensor in entries.items():
        check_storable(name, tensor)
    chosen = choose(model, pattern)
    names = {name: id(tensor) for name, tensor in entries.items() if id(tensor) in chosen}
    first = {identity: name for name, identity in reversed(names.items())}
    of = {key: chosen[key].pack(entries[name], name) for key, name in first.items()}
    packed = {name: weight for name, key in names.items() if (weight := of[key]) is not None}
    plain = {name: tensor for name, tensor in entries.items() if name not in packed}
    promises = {name: chosen[key].pattern for name, key in names.items() if chosen[key].promised}
    nbytes = write(path, packed, plain, metadata, promises)
    once = {id(tensor): tensor.nbytes for tensor in entries.values()}
    weights = tuple(
        SavedWeight(weight.name, weight.pattern, weight.nbytes, weight.dense_nbytes)
        for weight in {id(weight): weight for weight in packed.values()}.values()
    )
    return Saved(os.fspath(path), nbytes, sum(once.values()), weights)


def load(path: str | os.PathLike[str], model: nn.Module) -> dict[str, str]:
    """Read a packed file into a model of the same architecture, in place; all or nothing.

    The patterns that the file promises are declared for the weights, so that `verify` and `save`
    know them, in place of what was declared before. A weight that a sparsifier keeps stays
    promised to that one. Ties, devices and memory formats stay as the model has them.

    Returns:
        The metadata given to `save`.

    Raises:
        PackedFileError: for a file that is damaged or not one of ours.
        ValueError: listing every missing or unexpected name, wrong shape and wrong dtype; the
            model is unchanged then.
    """
    _check_model(model, "load(path, model)")
    contents = read(path)
    entries, found = _entries(model), {site.name: site for site in sites(model)}
    if wrong := problems(contents, entries, found):
        listed = "\n  ".join(wrong)
        raise ValueError(
            f"{os.fspath(path)} does not fit this model; nothing was loaded:\n  {listed}"
        )
    dense = {id(weight): weight.unpack() for weight in contents.packed.values()}
    unpacked = {name: dense[id(weight)] for name, weight in contents.packed.items()}
    values = contents.tensors | unpacked
    inner = unwrap(model)
    # Its own dictionary: modules with versions look for them there.
    state = inner.state_dict()
    for name in state:
        state[name] = values[canonical(name)]
    inner.load_state_dict(state)
    withdraw(found.values())
    declare({found[name]: its for name, its in contents.promises.items() if name in found})
    return contents.metadata


def _check_plain(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if why := getattr(type(module), "why_unfit", ""):
            raise ValueError(f"layer {name!r} cannot be saved: {why}; save that")


def _check_model(model: nn.Module, usage: str) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: want a torch.nn.Module, got {type(model).__name__}: {usage}")


def _entries(model: nn.Module) -> dict[str, Any]:
    """The state of the model inside its wrappers, parameters themselves, by canonical name."""
    state = unwrap(model).state_dict(keep_vars=True)
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and is_lazy(tensor):
            raise ValueError(f"{name!r} has no shape yet: run the model once, then call again")
    return {canonical(name): tensor for name, tensor in state.items()}
