"""What `compress` did, layer by layer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from torch import fx, nn

from nmsparsity.table import table

_KEY = "_nmsparsity_compressed"


@dataclass(frozen=True)
class CompressedRow:
    """One weight of a compressed model.

    Attributes:
        layer: the name of the layer, or of the weight where a layer has several.
        pattern: ``"2:4"``, or None for a weight that is not N:M or was not asked for.
        kernel: that runs it, or None where it stays dense.
        nbytes: of the weight as it is held now.
        dense_nbytes: of the dense weight.
        ms_dense, ms_packed: milliseconds a run of the example inputs, where measured.
        fused: what the layer does besides, ``("batch norm", "residual", "relu")``.
        reason: why it stays dense, or why nothing more is fused.
    """

    layer: str
    pattern: str | None
    kernel: str | None
    nbytes: int
    dense_nbytes: int
    ms_dense: float | None = None
    ms_packed: float | None = None
    fused: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class CompressedReport:
    """One row per weight; prints as a table, `to_json` for machines.

    Attributes:
        rows: of all weights.
        formats: milliseconds a run of the example inputs, by the memory format of the activations,
            where two were tried; the faster one is kept.
    """

    rows: Sequence[CompressedRow]
    formats: Mapping[str, float] = field(default_factory=dict)

    @property
    def packed(self) -> list[CompressedRow]:
        """The rows of the layers that a kernel runs."""
        return [row for row in self.rows if row.kernel is not None]

    def to_json(self) -> str:
        return json.dumps([asdict(row) for row in self.rows], indent=1)

    @property
    def summary(self) -> str:
        """One sentence."""
        now, dense = (sum(getattr(r, k) for r in self.rows) for k in ("nbytes", "dense_nbytes"))
        share = f" ({now / dense:.1%})" if dense else ""
        said = f"{len(self.packed)} of {len(self.rows)} weights are packed"
        times = [f"{name} {ms:.3g} ms" for name, ms in sorted(self.formats.items(), key=_second)]
        tried = f"; activations: {' (kept), '.join(times)}" if times else ""
        return f"{said}; {now:,} of {dense:,} bytes{share}{tried}"

    def __str__(self) -> str:
        head = ("layer", "pattern", "kernel", "bytes", "dense", "ms dense", "ms packed")
        rows = [_cells(row) for row in self.rows]
        return f"{table((*head, 'fused', 'why'), rows)}\n{self.summary}"


def compressed_report(model: nn.Module) -> CompressedReport:
    """The report of the `compress` that made this model.

    Raises:
        ValueError: for a model that `compress` did not make.
    """
    report = vars(model).get(_KEY) or getattr(model, "meta", {}).get(_KEY)
    if not isinstance(report, CompressedReport):
        raise ValueError(
            f"this {type(model).__name__} was not made by nmsparsity.compress: there is no report"
        )
    return report


def attach(model: nn.Module, report: CompressedReport) -> None:
    """Let a model carry its report, in place, through copies and pickles."""
    vars(model)[_KEY] = report
    if isinstance(model, fx.GraphModule):
        # A deep copy of one keeps this and nothing else.
        model.meta[_KEY] = report


def _second(pair: tuple[str, float]) -> float:
    return pair[1]


def _cells(row: CompressedRow) -> tuple[str, ...]:
    times = (row.ms_dense, row.ms_packed)
    return (
        row.layer,
        row.pattern or "",
        row.kernel or "dense",
        f"{row.nbytes:,}",
        f"{row.dense_nbytes:,}",
        *("" if ms is None else f"{ms:.3g}" for ms in times),
        ", ".join(row.fused),
        row.reason,
    )
