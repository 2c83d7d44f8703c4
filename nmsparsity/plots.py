"""Pictures of what telemetry saw (needs matplotlib)."""

from __future__ import annotations

import os
from collections.abc import Sequence

from nmsparsity.telemetry import Telemetry


def plot_telemetry(history: Sequence[Telemetry], path: str | os.PathLike[str]) -> None:
    """Draw normalized SAD over the training, one line a weight and a thick one for the network.

    Args:
        history: what `Sparsifier.telemetry` returned at one look after another.
        path: of the picture; the ending says the format (``.png``, ``.svg``, ``.pdf``).

    Raises:
        ValueError: for an empty history.
    """
    if not history:
        raise ValueError("history []: want one Telemetry at least; collect sparsifier.telemetry()")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    steps = [seen.step for seen in history]
    by_weight: dict[str, list[float]] = {}
    for seen in history:
        for row in seen.rows:
            by_weight.setdefault(row.name, []).append(row.sad_normalized)
    for name, values in by_weight.items():
        axes.plot(
            steps, values, linewidth=0.8, alpha=0.7, label=name if len(by_weight) < 9 else None
        )
    axes.plot(steps, [seen.sad_normalized for seen in history], "k", linewidth=2.5, label="network")
    axes.set(xlabel="optimizer step", ylabel="mask elements changed since the last look (SAD / n)")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
