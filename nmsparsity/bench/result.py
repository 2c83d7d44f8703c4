"""What a benchmark found: engines side by side, and the layers of the packed models."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from nmsparsity.bench.memory import Footprint
from nmsparsity.bench.rounds import Times
from nmsparsity.compression import CompressedReport
from nmsparsity.table import table


@dataclass(frozen=True)
class Row:
    """One engine.

    Attributes:
        name: of the engine, or the pattern of a packed model.
        packed: whether the model's weights are packed.
        times: seconds of one run of the inputs.
        memory: by which the process grew.
        error: the largest difference from dense torch with the same weights, over all outputs,
            relative to the largest output; not a number where nothing could be compared.
    """

    name: str
    packed: bool
    times: Times
    memory: Footprint
    error: float


@dataclass(frozen=True)
class Benchmark:
    """Rows of engines, and the reports of the packed models; prints as tables.

    Attributes:
        model: what was run, in words.
        batch: the first size of the first input, or the entries of a list.
        threads: of every engine.
        rounds: turns that every engine had.
        rows: the engines that ran.
        missing: why others did not, by name.
        layers: what `compress` did, by the name of the row.
    """

    model: str
    batch: int
    threads: int
    rounds: int
    rows: Sequence[Row]
    missing: Mapping[str, str] = field(default_factory=dict)
    layers: Mapping[str, CompressedReport] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Row:
        """The row of this name."""
        return {row.name: row for row in self.rows}[name]

    @property
    def best_dense(self) -> Row:
        """The fastest dense engine."""
        return min((r for r in self.rows if not r.packed), key=lambda row: row.times.median)

    @property
    def best_packed(self) -> Row:
        """The fastest packed model."""
        return min((r for r in self.rows if r.packed), key=lambda row: row.times.median)

    def speedup(self, name: str) -> float:
        """How many times faster a row is than the fastest dense engine."""
        return self.best_dense.times.median / self[name].times.median

    def to_json(self) -> str:
        said = asdict(self) | {
            "layers": {name: [asdict(r) for r in its.rows] for name, its in self.layers.items()}
        }
        for row, its in zip(said["rows"], self.rows, strict=True):
            row["median_ms"] = 1e3 * its.times.median
            row["speedup"] = self.speedup(its.name)
            row["error"] = None if math.isnan(its.error) else its.error
        return json.dumps(said, indent=1)

    @property
    def summary(self) -> str:
        """One sentence."""
        best, dense = self.best_packed, self.best_dense
        return (
            f"{best.name} is {self.speedup(best.name):.2f} times as fast as {dense.name}, the "
            f"fastest dense engine here"
        )

    def table(self) -> str:
        """The engines, one a line."""
        head = ("engine", "ms", "middle half", "per second", "x best dense")
        rows = [self._cells(row) for row in self.rows]
        return table((*head, "resident MB", "peak MB", "error"), rows)

    def _cells(self, row: Row) -> tuple[str, ...]:
        times = row.times
        memory = (row.memory.resident, row.memory.peak)
        return (
            row.name,
            f"{1e3 * times.median:.3f}",
            f"{1e3 * times.low:.3f} to {1e3 * times.high:.3f}",
            f"{self.batch / times.median:,.1f}",
            f"{self.speedup(row.name):.2f}",
            *("-" if size is None else f"{size / 1e6:,.1f}" for size in memory),
            "-" if math.isnan(row.error) else f"{row.error:.0e}",
        )

    def __str__(self) -> str:
        turns = f"{self.rounds} turns each, {self.threads} thread(s)"
        parts = [f"{self.model}, batch {self.batch}: {turns}", "", self.table(), ""]
        parts += [f"{name}: not run: {why}" for name, why in self.missing.items()]
        parts.append(self.summary)
        for name, report in self.layers.items():
            parts += ["", f"layers of {name}:", str(report)]
        return "\n".join(parts)
