"""AP of dense, STE, SR-STE and fixed masks: BCCD boxes, nuclei boxes and masks, two seeds.

    python benchmarks/detection.py                     # the whole table, resumable
    python benchmarks/detection.py --latency           # then: CPU latency of the trained detectors
    python benchmarks/detection.py --report            # results/detection.md and plots

Trainings are those of recipes/detection/bccd_*.yaml and recipes/segmentation/nuclei_*.yaml, run as
``nmsparsity train`` runs them, but for the epochs. Every finished one is a line of the results file
and is not done again; one that was stopped goes on where it was. Seeds are the outer loop.
``fixed`` starts from the dense detector of the same seed and trains a second time, as in ASP. With
``--backbone cifar10`` all others start from a classifier trained on CIFAR-10 by the same method and
pattern. What is reported is the last epoch, on the validation split; nothing is chosen on it.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ledger import append, read_lines

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
RECIPES = {"bccd": "detection/bccd_{}", "nuclei": "segmentation/nuclei_{}"}
# Nuclei: a quarter of the recipe's. All 28 trainings take an hour and a quarter of one core.
EPOCHS = {"bccd": 16, "nuclei": 6}
METHODS = ("dense", "ste", "sr_ste", "fixed")
PATTERNS = ("2:4", "1:4")
ENGINES = ("torch", "channels_last", "compile", "onnxruntime")
FULL_SIZE, FULL_PATTERNS = (3, 320, 480), ("2:4", "1:4", "1:8", "1:16")


@dataclass(frozen=True)
class Run:
    """One training; without a set, that of a backbone on CIFAR-10."""

    set: str
    method: str
    pattern: str
    seed: int

    @property
    def key(self) -> str:
        """A name that is also that of its folder."""
        pattern = () if self.method == "dense" else (self.pattern.replace(":", "of"),)
        return "-".join((self.set or "backbone", self.method, *pattern, f"seed{self.seed}"))

    @property
    def backbone(self) -> Run:
        """The classifier it stands on; one for all seeds."""
        return Run("", self.method, self.pattern, 0)

    @property
    def dense(self) -> Run:
        """The detector that ``fixed`` starts from."""
        return Run(self.set, "dense", "", self.seed)


def runs(options: argparse.Namespace) -> list[Run]:
    """All trainings in order: seeds outermost, dense first and fixed last."""
    found = []
    for seed in range(options.seeds):
        for name in options.sets:
            for method in sorted(options.methods, key=METHODS.index):
                for pattern in [""] if method == "dense" else options.patterns:
                    run = Run(name, method, pattern, seed)
                    if options.backbone == "cifar10" and method != "fixed":
                        found.append(run.backbone)
                    found.append(run)
    return list(dict.fromkeys(found))


def words(run: Run, options: argparse.Namespace) -> list[str]:
    """The arguments of ``nmsparsity train``."""
    tag = "dense" if run.method == "dense" else "2of4"
    recipe = RECIPES[run.set].format(tag) if run.set else f"detection/backbone_{tag}"
    found = ["--config", str(ROOT / "recipes" / f"{recipe}.yaml"), "--seed", str(run.seed)]
    found += ["--run_dir", str(options.runs / run.key), "--sparsity.print_report", "false"]
    found += ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    if run.method != "dense":
        found += ["--sparsity.pattern", run.pattern, "--sparsity.method", run.method]
    if options.root:
        found += ["--data.root", options.root]
    if not run.set:
        return found + _epochs(options.backbone_epochs)
    if run.method == "fixed":
        found += ["--task.init_from", str(options.runs / run.dense.key / "last.ckpt")]
    found += _start(run, options)
    return [*found, *_epochs(options.epochs or EPOCHS[run.set]), *options.more]


def _start(run: Run, options: argparse.Namespace) -> list[str]:
    """Where the backbone starts from; that of ``fixed`` comes with the detector."""
    if options.backbone == "random" or run.method == "fixed":
        return []
    return [
        *("--task.backbone.init_from", str(options.runs / run.backbone.key / "last.ckpt")),
        *("--task.backbone.norm", "batch", "--task.backbone.trainable_layers", "5"),
    ]


def _epochs(count: int | None) -> list[str]:
    return [] if count is None else ["--trainer.max_epochs", str(count)]


def train(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """Train one network, or go on with it; its line of the results."""
    import torch

    from nmsparsity.tasks.packing import pack
    from nmsparsity.tasks.train import prepare, quiet

    quiet()
    torch.set_num_threads(options.threads)
    ready = prepare(words(run, options))
    result = ready.fit()
    if result is None:
        raise SystemExit(f"{run.key} was stopped; the same command goes on")
    folder = options.runs / run.key
    packed, dense = pack(folder / "last.ckpt", folder / "packed.safetensors")
    return {
        "key": run.key,
        **asdict(run),
        "result": result,
        "curve": _curve(folder / "history.csv"),
        "packed_bytes": packed,
        "dense_bytes": dense,
        "backbone": options.backbone,
        "epochs": options.epochs,
        "torch": torch.__version__,
        "command": command(),
    }


def _curve(file: Path) -> list[dict[str, float]]:
    import csv

    with file.open() as rows:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(rows)]


def train_all(options: argparse.Namespace) -> None:
    """All missing trainings, one after the other."""
    lines = read_lines(options.results)
    settings = {"backbone": options.backbone, "epochs": options.epochs}
    if any({name: line[name] for name in settings} != settings for line in lines):
        raise SystemExit(f"{options.results} has other trainings: give another --results")
    done = {line["key"] for line in lines}
    wanted = runs(options)
    print(f"{len(done)} trainings done, {sum(r.key not in done for r in wanted)} to do", flush=True)
    for run in wanted:
        if run.key not in done:
            line = train(run, options)
            append(options.results, line)
            found = {k: round(v, 2) for k, v in line["result"].items() if k in SHOWN}
            print(f"{run.key:28s} {found} {line['result']['cpu_seconds']:.0f} s", flush=True)


SHOWN = ("top1", "box_ap", "mask_ap")


def measure_all(options: argparse.Namespace) -> None:
    """Latency as ``nmsparsity bench`` measures it: of the trained detectors of seed 0, packed and
    dense, all engines in turns; then of a Faster R-CNN of full size with random weights."""
    from nmsparsity import keep_memory
    from nmsparsity.bench.subject import subject

    keep_memory()
    if options.root:
        os.environ["NMSPARSITY_DATA"] = options.root
    done = {line["key"] for line in read_lines(options.latency_results)}
    for line in read_lines(options.results):
        wanted = line["set"] and line["seed"] == 0 and line["method"] == "sr_ste"
        if wanted and line["key"] not in done:
            about = subject(str(options.runs / line["key"] / "packed.safetensors"))
            measure(about, {k: line[k] for k in ("key", "set", "pattern")}, (), options)
    name = "detection/faster_rcnn"
    if name not in done:
        about = subject(name, FULL_SIZE)
        measure(about, {"key": name, "set": "", "pattern": ""}, FULL_PATTERNS, options)


def measure(
    about: Any, names: dict[str, str], patterns: Sequence[str], options: argparse.Namespace
) -> None:
    """Append the line of one detector."""
    from nmsparsity.bench import benchmark

    inputs = about.batch(1)
    found = benchmark(
        about.model, inputs, patterns=patterns, against=ENGINES, rounds=options.rounds, threads=1
    )
    line = {
        **names,
        "image": list(inputs[0].shape),
        "rows": [
            {
                "name": row.name,
                "packed": row.packed,
                "ms": 1e3 * row.times.median,
                "low": 1e3 * row.times.low,
                "high": 1e3 * row.times.high,
                "error": None if math.isnan(row.error) else row.error,
            }
            for row in found.rows
        ],
        "missing": dict(found.missing),
        "layers": {name: its.summary for name, its in found.layers.items()},
        "command": command(),
    }
    append(options.latency_results, line)
    print(found, flush=True)


def command() -> str:
    """What was typed, without where data and runs lie."""
    typed = sys.argv[1:]
    for option in ("--root", "--runs"):
        if option in typed:
            del typed[typed.index(option) : typed.index(option) + 2]
    return " ".join(["python benchmarks/detection.py", *typed])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--patterns", nargs="+", default=list(PATTERNS))
    parser.add_argument("--seeds", type=int, default=2, help="how many")
    parser.add_argument("--backbone", choices=("cifar10", "random"), default="random")
    parser.add_argument("--epochs", type=int, help=f"of every detector; default: {EPOCHS}")
    parser.add_argument("--backbone-epochs", type=int, help="default: the recipe's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--root", default=os.environ.get("NMSPARSITY_DATA"), help="of the data")
    parser.add_argument("--runs", type=Path, default=Path("runs/detection"), help="checkpoints")
    parser.add_argument("--results", type=Path, default=RESULTS / "detection.jsonl")
    parser.add_argument("--rounds", type=int, default=15, help="latency: turns of each engine")
    parser.add_argument("--latency", action="store_true", help="measure what is trained")
    parser.add_argument("--report", action="store_true", help="write Markdown and plots only")
    parser.add_argument("--more", nargs=argparse.REMAINDER, default=[], help="for nmsparsity train")
    options = parser.parse_args()
    options.latency_results = options.results.with_name(f"{options.results.stem}-latency.jsonl")
    return options


if __name__ == "__main__":
    chosen = parse()
    if chosen.report:
        from detection_report import write_report

        write_report(chosen.results, read_lines(chosen.results), read_lines(chosen.latency_results))
    elif chosen.latency:
        measure_all(chosen)
    else:
        train_all(chosen)
