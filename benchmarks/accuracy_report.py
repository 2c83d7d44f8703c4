"""The table and the plots of accuracy.py's results file."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

Line = dict[str, Any]
COLORS = {"dense": "#555555", "ste": "#c44e52", "sr_ste": "#4c72b0", "fixed": "#dd9e3c"}
NAMES = {"dense": "dense", "ste": "STE", "sr_ste": "SR-STE", "fixed": "fixed (two trainings)"}


def write_report(results: Path, lines: Sequence[Line]) -> None:
    """Write ``<results>.md`` and, beside it, the plots ``-sad.png`` and ``-top1.png``."""
    if not lines:
        raise SystemExit(f"{results}: no finished run to report")
    plot_accuracy(lines, results.with_name(f"{results.stem}-top1.png"))
    plot_sad(lines, results.with_name(f"{results.stem}-sad.png"))
    results.with_suffix(".md").write_text(markdown(results.stem, lines))
    print(results.with_suffix(".md"))


def markdown(name: str, lines: Sequence[Line]) -> str:
    """The result page: what was run, the table, paired differences, machine and command."""
    recipe, seeds = lines[0]["recipe"], sorted({line["seed"] for line in lines})
    shown = {key: value for key, value in recipe.items() if key != "root"}
    what = "held-out training images" if recipe["validation"] else "test images"
    seconds = sum(line["cpu_seconds"] for line in lines)
    return "\n".join(
        [
            f"# {name}: top-1 on CIFAR-10\n",
            f"Accuracy in percent of {int(lines[0]['images']):,} {what} after the last epoch, mean "
            f"± standard error of {len(seeds)} seeds. One recipe for all: "
            + ", ".join(f"{key} {value}" for key, value in shown.items())
            + ". `small_resnet8`; the first convolution and the classifier are dense.\n",
            "| pattern | method | top-1 | best epoch | density | SAD / weights | seeds |",
            "|---|---|---|---|---|---|---|",
            *(row(group) for group in groups(lines)),
            "\nDensity is that of all weight matrices together. SAD is summed over the epochs and "
            "divided by the number of maskable weights.\n",
            *differences(lines),
            f"![top-1]({name}-top1.png)\n\n![SAD of each epoch]({name}-sad.png)\n",
            f"{len(lines)} runs, {seconds / 3600:.1f} core hours. {platform.processor() or cpu()}, "
            f"one thread a run; torch {lines[0]['torch']}, Python "
            f"{platform.python_version()}; {date.today()}.\n",
            "```",
            lines[-1]["command"],
            f"{lines[-1]['command']} --report",
            "```\n",
        ]
    )


def cpu() -> str:
    """The processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    names = (
        [li for li in info.read_text().splitlines() if "model name" in li] if info.exists() else []
    )
    return names[0].split(":")[1].strip() if names else platform.machine()


def groups(lines: Iterable[Line]) -> list[list[Line]]:
    """The runs that differ only in their seed, densest pattern first."""
    found: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        found.setdefault((line["pattern"], line["method"], line["decay"]), []).append(line)
    order = list(NAMES)
    return sorted(
        found.values(),
        key=lambda group: (
            -share(group[0]["pattern"]),
            order.index(group[0]["method"]),
            group[0]["decay"],
        ),
    )


def share(pattern: str) -> float:
    """N / M; 1 for the dense network."""
    kept, size = pattern.split(":") if pattern else ("1", "1")
    return int(kept) / int(size)


def row(group: Sequence[Line]) -> str:
    first = group[0]
    name = NAMES[first["method"]]
    if first["method"] == "sr_ste":
        name += f" λ={first['decay']:g}"
    sad = [sum(look["sad"] for look in run["sad"]) / max(1, run["maskable"]) for run in group]
    return (
        f"| {first['pattern'] or '-'} | {name} | {spread([run['top1'] for run in group])} | "
        f"{spread([run['best_top1'] for run in group])} | {first['density']:.3f} | "
        f"{statistics.mean(sad):.3f} | {len(group)} |"
    )


def spread(values: Sequence[float]) -> str:
    """Mean and standard error; one value has no error."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.2f}"
    return f"{mean:.2f} ± {statistics.stdev(values) / len(values) ** 0.5:.2f}"


def differences(lines: Sequence[Line]) -> list[str]:
    """SR-STE minus each other method, seed by seed: what a seed does to both cancels."""
    top1 = {
        (run["pattern"], run["method"], run["decay"], run["seed"]): run["top1"] for run in lines
    }
    sparse = [group[0] for group in groups(lines) if group[0]["method"] == "sr_ste"]
    rows = []
    for run in sparse:
        cells = []
        for pattern, method in (("", "dense"), (run["pattern"], "ste"), (run["pattern"], "fixed")):
            pairs = [
                value - top1[pattern, method, 0.0, seed]
                for (p, m, decay, seed), value in top1.items()
                if (p, m, decay) == (run["pattern"], "sr_ste", run["decay"])
                and (pattern, method, 0.0, seed) in top1
            ]
            cells.append(spread(pairs) if pairs else "-")
        rows.append(f"| {run['pattern']} | {run['decay']:g} | {' | '.join(cells)} |")
    head = "| pattern | λ | SR-STE - dense | SR-STE - STE | SR-STE - fixed |"
    note = "\nPaired by seed, in points of top-1:\n"
    return [note, head, "|---|---|---|---|---|", *rows, ""] if rows else []


def plot_accuracy(lines: Sequence[Line], path: Path) -> None:
    """Top-1 against the share of weights kept, one line a method."""
    pyplot = backend()
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    marks: dict[str, list[tuple[float, float, float]]] = {}
    for group in groups(lines):
        values = [run["top1"] for run in group]
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        marks.setdefault(label(group[0]), []).append(
            (share(group[0]["pattern"]), statistics.mean(values), error)
        )
    for name, points in marks.items():
        color = COLORS[next(key for key, value in NAMES.items() if name.startswith(value))]
        x, y, error = zip(*points, strict=True)
        if name == "dense":
            axes.axhline(y[0], color=color, linestyle="--", label=name)
        else:
            axes.errorbar(x, y, error, marker="o", capsize=3, label=name, color=color)
    axes.set_xscale("log", base=2)
    ticks = sorted({share(line["pattern"]) for line in lines if line["pattern"]})
    axes.set_xticks(ticks, [f"1/{1 / tick:.0f}" for tick in ticks])
    axes.set(xlabel="share of weights kept", ylabel="top-1 (%)")
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def label(run: Line) -> str:
    name = NAMES[run["method"]]
    return f"{name} λ={run['decay']:g}" if run["method"] == "sr_ste" else name


def plot_sad(lines: Sequence[Line], path: Path) -> None:
    """Normalised SAD of each epoch, one panel a pattern, one line a method (mean of the seeds)."""
    pyplot = backend()
    moving = [group for group in groups(lines) if group[0]["method"] in ("ste", "sr_ste")]
    patterns = list(dict.fromkeys(group[0]["pattern"] for group in moving))
    if not patterns:
        return
    figure, panels = pyplot.subplots(
        1,
        len(patterns),
        figsize=(3 * len(patterns), 3),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for pattern, axes in zip(patterns, panels[0], strict=True):
        for group in moving:
            if group[0]["pattern"] != pattern:
                continue
            epochs = [look["epoch"] for look in group[0]["sad"]]
            by_epoch = zip(
                *([k["sad_normalized"] for k in run["sad"]] for run in group), strict=True
            )
            means = [statistics.mean(values) for values in by_epoch]
            color = None if len(moving) > 2 * len(patterns) else COLORS[group[0]["method"]]
            axes.plot(epochs, means, marker=".", color=color, label=label(group[0]))
        axes.set(title=pattern, xlabel="epoch", yscale="log")
    panels[0][0].set_ylabel("SAD of the epoch / weights")
    panels[0][-1].legend(fontsize=7)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def backend() -> Any:
    """matplotlib without a display."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
