"""A picture of benchmarks (needs matplotlib)."""

from __future__ import annotations

import os
from collections.abc import Sequence

from nmsparsity.bench.result import Benchmark, Row


def plot_benchmarks(found: Sequence[Benchmark], path: str | os.PathLike[str]) -> None:
    """Draw milliseconds of every engine as bars, a panel for each benchmark.

    Whiskers are the middle half of the turns.

    Args:
        found: one benchmark or several.
        path: of the picture; the ending says the format (``.png``, ``.svg``, ``.pdf``).

    Raises:
        ValueError: for nothing to draw.
    """
    if not found:
        raise ValueError("found []: want one Benchmark at least")
    from matplotlib.figure import Figure

    lines = max(len(one.rows) for one in found)
    figure = Figure(figsize=(5.5 * len(found), 1.5 + 0.35 * lines), layout="constrained")
    for axes, one in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        names = [row.name for row in one.rows]
        middle = [1e3 * row.times.median for row in one.rows]
        colours = ["tab:green" if row.packed else "tab:gray" for row in one.rows]
        axes.barh(names, middle, xerr=_whiskers(one.rows), color=colours, capsize=2)
        for place, row in enumerate(one.rows):
            said = f" {one.speedup(row.name):.2f}x"
            axes.text(1e3 * row.times.high, place, said, va="center", fontsize="small")
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set(
            xlabel="ms a run (lower is better)",
            title=f"{one.model}, batch {one.batch}, {one.threads} thread(s)",
        )
    figure.savefig(path, dpi=150)


def _whiskers(rows: Sequence[Row]) -> list[list[float]]:
    below = [1e3 * (row.times.median - row.times.low) for row in rows]
    return [below, [1e3 * (row.times.high - row.times.median) for row in rows]]
