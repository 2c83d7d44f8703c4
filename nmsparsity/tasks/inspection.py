"""Inspection: the per-layer table of any checkpoint or packed file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nmsparsity.layout import Layout
from nmsparsity.packed import PackedWeight
from nmsparsity.packed.infer import packed_bytes
from nmsparsity.packed.smaller import pack_smaller, packable
from nmsparsity.pattern import Pattern
from nmsparsity.table import table
from nmsparsity.tasks.checkpoint import Checkpoint


@dataclass(frozen=True)
class Layer:
    """One weight of two dimensions or more.

    Attributes:
        name: of the weight.
        shape: ``[out, in, ...]``.
        pattern: what it follows; None for a dense one.
        density: share of nonzeros.
        dense_bytes: its size in memory.
        packed_bytes: its size packed; that of the dense one where it does not pack.
        note: how the pattern is known, or why it does not hold.
        same_as: the name of the weight that it is tied to, which is counted there.
    """

    name: str
    shape: tuple[int, ...]
    pattern: Pattern | None
    density: float
    dense_bytes: int
    packed_bytes: int
    note: str
    same_as: str | None = None


@dataclass(frozen=True)
class Inspection:
    """The layers of a file; prints as a table.

    Attributes:
        layers: in the order of the file.
        file_bytes: size of the file.
        checkpoint: what was read.
    """

    layers: list[Layer]
    file_bytes: int
    checkpoint: Checkpoint

    def __str__(self) -> str:
        head = ("weight", "shape", "pattern", "axis", "density", "bytes", "packed", "share", "")
        return f"{table(head, [_cells(layer) for layer in self.layers])}\n{self.summary}"

    @property
    def ok(self) -> bool:
        """Whether every pattern that the file declares holds."""
        return not any(layer.note.startswith("NOT ") for layer in self.layers)

    @property
    def summary(self) -> str:
        """What is sparse, and what packing saves, in two sentences."""
        layers = [layer for layer in self.layers if layer.same_as is None]
        sparse = sum(layer.pattern is not None for layer in layers)
        elements = sum(torch.Size(layer.shape).numel() for layer in layers)
        kept = sum(torch.Size(layer.shape).numel() * layer.density for layer in layers)
        dense = sum(layer.dense_bytes for layer in layers)
        packed = sum(layer.packed_bytes for layer in layers)
        return (
            f"{sparse} of {len(layers)} weights are N:M; {kept / max(elements, 1):.1%} of "
            f"{elements:,} elements are nonzero. These weights take {dense:,} bytes dense, "
            f"{packed:,} packed ({packed / max(dense, 1):.1%}); the file has {self.file_bytes:,}."
        )


def inspect(path: str | Path) -> Inspection:
    """Read a file and find the pattern of every weight matrix in it.

    Patterns are those the file declares, checked; in files of others, those that the zeros show,
    in the order of dimensions, ``[out, in, ...]`` or ``[in, out, ...]``, that packs best.

    Raises:
        FileNotFoundError, ValueError: as `Checkpoint.read`.
    """
    checkpoint = Checkpoint.read(path)
    layers = list(_layers(checkpoint))
    return Inspection(layers, checkpoint.path.stat().st_size, checkpoint)


def pack_weight(checkpoint: Checkpoint, name: str, weight: Tensor) -> PackedWeight | None:
    """The packed form of a weight; None for what does not get smaller.

    Raises:
        ValueError: if the pattern that the file declares does not hold, naming the first bad group.
    """
    if name in checkpoint.packed:
        return checkpoint.packed[name]
    pattern = checkpoint.patterns.get(name)
    if pattern is not None:
        return pack_smaller(weight, pattern, _layout(weight, pattern), name)
    # A file does not say what kind of layer a weight is of: the layout that packs best.
    seen = [(its, layout) for layout in _LAYOUTS if (its := packable(weight, layout)) is not None]
    if not seen:
        return None
    its, layout = min(seen, key=lambda pair: packed_bytes(weight, *pair))
    return pack_smaller(weight, its, layout, name)


_LAYOUTS = (Layout(), Layout(input_dim=0))


def _layout(weight: Tensor, pattern: Pattern) -> Layout:
    """The layout in which the weight follows the pattern; the usual one if it does in none."""
    return next((layout for layout in _LAYOUTS if pattern.holds(weight, layout)), _LAYOUTS[0])


def _layers(checkpoint: Checkpoint) -> Iterator[Layer]:
    first: dict[tuple[Any, ...], str] = {}
    for name, weight in checkpoint.tensors.items():
        if weight.dim() < 2 or not weight.is_floating_point():
            continue
        same_as = first.setdefault(identity(weight), name)
        packed, note, pattern = None, "", checkpoint.patterns.get(name)
        try:
            packed = pack_weight(checkpoint, name, weight)
        except ValueError as error:
            note = f"NOT {pattern or 'packable'}: {error}"
        if packed is not None and pattern is None:
            note, pattern = "seen from its zeros", packed.pattern
        yield Layer(
            name,
            tuple(weight.shape),
            None if note.startswith("NOT ") else pattern,
            int(torch.count_nonzero(weight)) / max(weight.numel(), 1),
            weight.nbytes,
            weight.nbytes if packed is None else packed.nbytes,
            note,
            None if same_as == name else same_as,
        )


def identity(weight: Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same memory: tied weights."""
    return weight.data_ptr(), weight.shape, weight.stride(), weight.dtype


def _cells(layer: Layer) -> tuple[str, ...]:
    return (
        layer.name,
        "x".join(map(str, layer.shape)),
        "dense" if layer.pattern is None else str(layer.pattern),
        "" if layer.pattern is None else layer.pattern.axis,
        f"{layer.density:.3f}",
        f"{layer.dense_bytes:,}",
        f"{layer.packed_bytes:,}",
        f"{layer.packed_bytes / max(layer.dense_bytes, 1):.1%}",
        layer.note if layer.same_as is None else f"the same as {layer.same_as}",
    )
