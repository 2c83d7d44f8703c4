"""The table and the plots of detection.py's results."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from accuracy_report import COLORS, NAMES, backend, spread
from machine import machine

Line = dict[str, Any]
METRICS = {
    "bccd": ("box_ap", "box_ap50", "box_ap75"),
    "nuclei": ("box_ap", "mask_ap", "mask_ap50", "mask_ap75"),
}
TITLES = {
    "bccd": "BCCD, boxes (87 validation images)",
    "nuclei": "Nuclei, boxes and masks (66 validation images)",
}


def write_report(results: Path, lines: Sequence[Line], latency: Sequence[Line]) -> None:
    """Write ``<results>.md`` and the plots beside it."""
    detectors = [line for line in lines if line["set"]]
    if not detectors:
        raise SystemExit(f"{results}: no finished training to report")
    seeds = len({line["seed"] for line in detectors})
    page = [
        f"# {results.stem}: AP of N:M detectors\n",
        "Percent, as COCO counts it, on the validation split after the last epoch; mean ± standard "
        f"error of {seeds} seed(s). All of a set have the same recipe and epochs; `fixed` "
        "has them twice. Backbones start from "
        + ("CIFAR-10 classifiers" if lines[0]["backbone"] == "cifar10" else "random weights")
        + ". Bytes: of the packed file, and its share of the dense one.\n",
    ]
    for name in dict.fromkeys(line["set"] for line in detectors):
        page += section(results, name, [line for line in detectors if line["set"] == name])
    page += latencies(latency)
    seconds = sum(line["result"]["cpu_seconds"] for line in lines)
    page += [
        f"{len(lines)} trainings, {seconds / 3600:.1f} core hours of training.\n",
        *machine(),
        f"{date.today()}.\n",
        "```",
        *dict.fromkeys(line["command"] for line in (*lines, *latency)),
        f"{lines[-1]['command']} --report",
        "```\n",
    ]
    results.with_suffix(".md").write_text("\n".join(page))
    print(results.with_suffix(".md"))


def groups(lines: Sequence[Line]) -> list[list[Line]]:
    """Trainings that differ in their seed only; dense first, then by pattern and method."""
    found: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        found.setdefault((line["pattern"], line["method"]), []).append(line)
    order = list(NAMES)
    patterns = ["", *dict.fromkeys(line["pattern"] for line in lines if line["pattern"])]
    return sorted(
        found.values(),
        key=lambda its: (patterns.index(its[0]["pattern"]), order.index(its[0]["method"])),
    )


def section(results: Path, name: str, lines: Sequence[Line]) -> list[str]:
    metrics = METRICS[name]
    dense = {line["seed"]: line for line in lines if line["method"] == "dense"}
    head = " | ".join(metric.replace("_", " ").replace("ap", "AP") for metric in metrics)
    found = [
        f"## {TITLES[name]}\n",
        f"| pattern | method | {head} | difference from dense, by seed | density | bytes | seeds |",
        "|---|---|" + "---|" * (len(metrics) + 4),
    ]
    for group in groups(lines):
        cells = [spread([line["result"][metric] for line in group]) for metric in metrics]
        main = metrics[1] if name == "nuclei" else metrics[0]
        pairs = [
            line["result"][main] - dense[line["seed"]]["result"][main]
            for line in group
            if line["seed"] in dense and line["method"] != "dense"
        ]
        first = group[0]
        share = first["packed_bytes"] / first["dense_bytes"]
        found.append(
            f"| {first['pattern'] or '-'} | {NAMES[first['method']]} | {' | '.join(cells)} | "
            f"{spread(pairs) if pairs else '-'} | {first['result']['density']:.3f} | "
            f"{first['packed_bytes']:,} ({share:.0%}) | {len(group)} |"
        )
    picture = results.with_name(f"{results.stem}-{name}.png")
    plot(lines, name, picture)
    return [*found, f"\n![AP, loss and SAD of each epoch]({picture.name})\n"]


def latencies(lines: Sequence[Line]) -> list[str]:
    if not lines:
        return []
    found = [
        "## Latency\n",
        "Milliseconds of one image, from pixels to boxes (and masks), one thread: medians, all "
        "engines in turns in one process, with the same weights (`nmsparsity bench`). torch / it: "
        "how many times as fast as dense torch in its faster memory format. Error: the "
        "largest difference of boxes, scores and masks from dense torch.\n",
        "The trained ones are those of SR-STE, seed 0, on the first validation image. "
        "detection/faster_rcnn is of full size (ResNet-50, 256 channels, 80 categories), its "
        "weights random and pruned by magnitude: it finds next to nothing, so that what follows "
        "the scores is hardly in its times; where it finds nothing there is no error to measure.\n",
        "| detector | image | engine | ms | middle half | torch / it | best dense / it | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    missing = []
    for line in lines:
        dense = {row["name"]: row["ms"] for row in line["rows"] if not row["packed"]}
        torch = min(ms for name, ms in dense.items() if name in ("torch", "channels_last"))
        title = f"{line['set']}, {line['pattern']}" if line["set"] else line["key"]
        size = "x".join(map(str, line["image"][1:]))
        for row in line["rows"]:
            error = "-" if row["error"] is None else f"{row['error']:.0e}"
            found.append(
                f"| {title} | {size} | {row['name']} | {row['ms']:.1f} | "
                f"{row['low']:.1f} to {row['high']:.1f} | {torch / row['ms']:.2f} | "
                f"{min(dense.values()) / row['ms']:.2f} | {error} |"
            )
        missing += [f"{title}: {name} was not run: {why}" for name, why in line["missing"].items()]
    return [*found, "", *(f"{line}\n" for line in missing)]


def plot(lines: Sequence[Line], name: str, path: Path) -> None:
    """AP, loss and SAD over the epochs, means of the seeds, one line a method and pattern."""
    pyplot = backend()
    metric = "val/mask_ap" if name == "nuclei" else "val/box_ap"
    panels = {metric: "AP (%)", "train/loss": "loss", "sparsity/sad_normalized": "SAD / weights"}
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4), layout="constrained")
    styles = {"": "-", "2:4": "-", "1:4": "--"}
    for panel, (key, label) in zip(axes, panels.items(), strict=True):
        for group in groups(lines):
            curves = [{r["epoch"]: r[key] for r in line["curve"] if key in r} for line in group]
            first = group[0]
            epochs = sorted(set.intersection(*map(set, curves)))
            if not epochs or (key.startswith("sparsity") and first["method"] == "dense"):
                continue
            panel.plot(
                epochs,
                [statistics.mean(curve[epoch] for curve in curves) for epoch in epochs],
                styles.get(first["pattern"], ":"),
                color=COLORS[first["method"]],
                label=f"{NAMES[first['method']]} {first['pattern']}",
            )
        panel.set(xlabel="epoch", ylabel=label)
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
