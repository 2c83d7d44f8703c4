"""Rows of the report: of layers that could be packed, and of weights that were left alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from nmsparsity.compression.prepack import Prepacked
from nmsparsity.compression.report import CompressedRow
from nmsparsity.kernels.choose import Choice
from nmsparsity.layers import PackedLayer
from nmsparsity.pattern import Pattern
from nmsparsity.targets import Skipped


def layer_row(
    name: str,
    pattern: Pattern,
    choice: Choice,
    nbytes: int,
    packed: PackedLayer | None,
    fused: tuple[str, ...],
    why: str,
) -> CompressedRow:
    """The row of a layer of so many dense bytes; ``why`` nothing more is fused."""
    return CompressedRow(
        name,
        str(pattern),
        choice.kernel,
        nbytes if packed is None else packed.nbytes,
        nbytes,
        choice.ms_dense,
        choice.ms_packed,
        fused,
        choice.reason or (f"not fused: {why}" if why else ""),
    )


def skipped_rows(
    model: nn.Module, skipped: Sequence[Skipped], prepacked: Mapping[str, Prepacked]
) -> list[CompressedRow]:
    """A row for every weight that was left alone; a tied one counts where it is named first."""
    held = dict(model.named_parameters(remove_duplicate=False))
    homes: dict[int, str] = {}
    rows = []
    for entry in skipped:
        parameter = held.get(entry.name)
        home = entry.name if parameter is None else homes.setdefault(id(parameter), entry.name)
        row = _tied(entry, home) if home != entry.name else _alone(parameter, entry)
        rows.append(noted(row, prepacked.get(entry.name.removesuffix(".weight"))))
    return rows


def noted(row: CompressedRow, found: Prepacked | None) -> CompressedRow:
    """The row, with a second copy of the weight, if there is one."""
    if found is None:
        return row
    nbytes = row.nbytes + found.layer.weight.nbytes
    return replace(row, nbytes=nbytes, reason=f"{row.reason}; {found.said}")


def _alone(parameter: nn.Parameter | None, entry: Skipped) -> CompressedRow:
    itemsize = 4 if parameter is None else parameter.itemsize
    nbytes = torch.Size(entry.shape).numel() * itemsize
    return CompressedRow(entry.name, None, None, nbytes, nbytes, reason=entry.reason)


def _tied(entry: Skipped, home: str) -> CompressedRow:
    return CompressedRow(entry.name, None, None, 0, 0, reason=f"{entry.reason}; it is {home!r}")
