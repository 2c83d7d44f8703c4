"""Pictures of what telemetry saw (needs matplotlib)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

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


def plot_history(
    rows: Sequence[Mapping[str, float]],
    panels: Mapping[str, Sequence[str]],
    path: str | os.PathLike[str],
) -> None:
    """Draw logged numbers over the epochs, one panel a unit, one line a number.

    Args:
        rows: one an epoch, with ``epoch`` and whatever was logged, as `History` collects them.
        panels: by the label of their axis, the names of the numbers; one that ends in ``/`` stands
            for all that begin so. Numbers that no row has are left out, and empty panels.
        path: of the picture; the ending says the format.

    Raises:
        ValueError: for no rows.
    """
    if not rows:
        raise ValueError("rows []: want the numbers of one epoch at least")
    from matplotlib.figure import Figure

    known = list(dict.fromkeys(name for row in rows for name in row))
    lines = {label: _chosen(known, names) for label, names in panels.items()}
    lines = {label: names for label, names in lines.items() if names}
    figure = Figure(figsize=(5 * max(1, len(lines)), 4), layout="constrained")
    for number, (label, names) in enumerate(lines.items(), 1):
        axes = figure.add_subplot(1, len(lines), number)
        for name in names:
            there = [row for row in rows if name in row]
            epochs = [row["epoch"] for row in there]
            axes.plot(epochs, [row[name] for row in there], marker=".", label=name)
        axes.set(xlabel="epoch", ylabel=label)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _chosen(known: Sequence[str], names: Sequence[str]) -> list[str]:
    return [
        name
        for name in known
        if any(name == asked or (asked.endswith("/") and name.startswith(asked)) for asked in names)
    ]
