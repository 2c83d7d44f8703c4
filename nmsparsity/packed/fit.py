"""Whether a packed file fits a model, and what keeps it from fitting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nmsparsity.packed.file import Contents
from nmsparsity.packed.weight import PackedWeight
from nmsparsity.sites import Site


def problems(contents: Contents, entries: dict[str, Any], found: dict[str, Site]) -> list[str]:
    """What keeps the file from fitting the model's entries, one sentence each."""
    others = [*_differences(contents, entries, found), *_broken_ties(contents, entries)]
    listed = list(_other_dtypes(contents, entries))
    if others or len(listed) < 2:
        return [*others, *(line for _, _, line in listed)]
    pairs = Counter((stored, own) for stored, own, _ in listed)
    remedy = ": convert them in the model first"
    if len(pairs) == 1:
        ((stored, _),) = pairs
        remedy = f": call model.to({stored}) first" if stored.is_floating_point else remedy
    return [
        f"{count} tensors are {stored} in the file, {own} in the model{remedy}"
        for (stored, own), count in pairs.most_common()
    ]


def _stored(contents: Contents) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    stored = {name: (tuple(t.shape), t.dtype) for name, t in contents.tensors.items()}
    return stored | {name: (w.shape, w.values.dtype) for name, w in contents.packed.items()}


def _differences(
    contents: Contents, entries: dict[str, Any], found: dict[str, Site]
) -> Iterator[str]:
    stored = _stored(contents)
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
        elif tuple(tensor.shape) != shape:
            yield (
                f"{name!r} is {dtype} {list(shape)} in the file, "
                f"{tensor.dtype} {list(tensor.shape)} in the model"
            )
    for name, weight in contents.packed.items():
        promise = contents.promises.get(name)
        if promise is None or name not in found or weight.layout == found[name].layout:
            continue
        # A file made without the model may tell another layout, in which the groups are the same.
        if not promise.holds(weight.unpack(), found[name].layout):
            yield f"{name!r} has {weight.layout} in the file, {found[name].layout} in the model"


def _other_dtypes(
    contents: Contents, entries: dict[str, Any]
) -> Iterator[tuple[torch.dtype, torch.dtype, str]]:
    """Entries that differ in nothing but their dtype: the two, and a sentence."""
    for name, (shape, dtype) in _stored(contents).items():
        tensor = entries.get(name)
        if not isinstance(tensor, Tensor) or tensor.is_meta or tuple(tensor.shape) != shape:
            continue
        if tensor.dtype != dtype:
            sizes = list(shape)
            said = f"{dtype} {sizes} in the file, {tensor.dtype} {sizes} in the model"
            yield dtype, tensor.dtype, f"{name!r} is {said}"


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
