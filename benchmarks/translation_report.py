"""The table and the plot of translation.py's results file."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from accuracy_report import cpu, share, spread

Line = dict[str, Any]


def write_report(results: Path, lines: Sequence[Line]) -> None:
    """Write ``<results>.md`` and, beside it, the plot ``-bleu.png``."""
    if not lines:
        raise SystemExit(f"{results}: no finished run to report")
    plot_bleu(lines, results.with_name(f"{results.stem}-bleu.png"))
    results.with_suffix(".md").write_text(markdown(results.stem, lines))
    print(results.with_suffix(".md"))


def markdown(name: str, lines: Sequence[Line]) -> str:
    """The result page: what was run, the table, paired differences, machine and command."""
    first = lines[0]
    seeds = sorted({line["seed"] for line in lines})
    what = "the average of the last epochs" if first["averaged"] else "the best epoch"
    seconds = sum(line["cpu_seconds"] for line in lines)
    return "\n".join(
        [
            f"# {name}: BLEU and chrF on Multi30k, English to German\n",
            f"{int(first['sentences']):,} sentences of the {first['split']} split, beam search by "
            f"{what}; {_seeds(len(seeds))}. One recipe for all: "
            f"`recipes/translation/multi30k_dense.yaml`, {first['epochs']} epochs"
            f"{', with ' + ' '.join(first['overrides']) if first['overrides'] else ''}. "
            "Attention and feed-forward layers are sparse, embeddings and output layer dense.\n",
            "| pattern | method | BLEU | chrF | perplexity | density | SAD | seeds |",
            "|---|---|---|---|---|---|---|---|",
            *(row(group) for group in groups(lines)),
            f"\nBLEU: `{first['signatures'][0]}`; chrF2: `{first['signatures'][1]}`. Density is "
            "that of all weights, embeddings among them; SAD is summed over the epochs.\n",
            *differences(lines),
            f"![BLEU]({name}-bleu.png)\n",
            f"{len(lines)} runs, {seconds / 3600:.1f} core hours of training. "
            f"{platform.processor() or cpu()}; torch {first['torch']}, Python "
            f"{platform.python_version()}; {date.today()}.\n",
            "```",
            *dict.fromkeys(line["command"] for line in lines),
            f"{lines[-1]['command']} --report",
            "```\n",
        ]
    )


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"mean ± standard error of {count} seeds"


def groups(lines: Iterable[Line]) -> list[list[Line]]:
    """The runs that differ only in their seed, densest pattern first, then as they were run."""
    found: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        found.setdefault((line["pattern"], line["variant"], line["decay"]), []).append(line)
    return sorted(found.values(), key=lambda group: -share(group[0]["pattern"]))


def label(line: Line) -> str:
    """The method, and its decay where it has one."""
    decay = "" if line["decay"] is None else f" λ={line['decay']:g}"
    return f"{line['variant']}{decay}"


def row(group: Sequence[Line]) -> str:
    first = group[0]
    scores = [spread([line[name] for line in group]) for name in ("bleu", "chrf", "perplexity")]
    sad = statistics.mean(line["sad"] for line in group)
    return (
        f"| {first['pattern'] or '-'} | {label(first)} | {' | '.join(scores)} | "
        f"{first['density']:.3f} | {sad:,.0f} | {len(group)} |"
    )


def differences(lines: Sequence[Line]) -> list[str]:
    """BLEU of every group less that of the dense network of the same seed."""
    dense = {line["seed"]: line["bleu"] for line in lines if line["variant"] == "dense"}
    rows = []
    for group in groups(lines):
        pairs = [line["bleu"] - dense[line["seed"]] for line in group if line["seed"] in dense]
        if pairs and group[0]["variant"] != "dense":
            rows.append(f"| {group[0]['pattern']} | {label(group[0])} | {spread(pairs)} |")
    head = ["| pattern | method | BLEU less dense, seed by seed |", "|---|---|---|"]
    return [*head, *rows, ""] if rows else []


def plot_bleu(lines: Sequence[Line], path: Path) -> None:
    """BLEU of every run by method, a panel for each pattern; the dashed lines are dense."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    patterns = list(dict.fromkeys(line["pattern"] for line in lines if line["pattern"])) or [""]
    variants = list(dict.fromkeys(line["variant"] for line in lines if line["pattern"]))
    figure, axes = pyplot.subplots(
        1, len(patterns), figsize=(3.6 * len(patterns), 3.6), sharey=True, squeeze=False
    )
    for pattern, axis in zip(patterns, axes[0], strict=True):
        for line in lines:
            if line["variant"] == "dense":
                axis.axhline(line["bleu"], color="grey", linestyle="--", linewidth=0.8)
            elif line["pattern"] == pattern:
                axis.plot(variants.index(line["variant"]), line["bleu"], "o", color="tab:blue")
        axis.set_title(pattern or "dense")
        axis.set_xticks(range(len(variants)), variants, rotation=60, ha="right", fontsize=8)
        axis.grid(axis="y", alpha=0.3)
    axes[0][0].set_ylabel("BLEU, beam search")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
