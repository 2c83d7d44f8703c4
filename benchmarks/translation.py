"""BLEU and chrF of every method on Multi30k: one recipe, several seeds.

    python benchmarks/translation.py --processes 2 --threads 1      # the whole table, resumable
    python benchmarks/translation.py --report                       # results/translation.md, a plot
    python benchmarks/translation.py --split validation --seeds 1 --methods sr_ste --patterns 2:4 \
        --decays 0 2e-5 6e-5 2e-4 6e-4 2e-3 --results benchmarks/results/translation-decay.jsonl

Every finished run is one line of the results file and is not done again; a run that was stopped
goes on from its last checkpoint. Seeds are the outer loop: a part of the file is a whole table of
fewer seeds. All methods of one seed share the initial weights, the order of the pairs and dropout.
What is reported is the average of the last epochs' dense weights, made N:M again, by beam search
on the test split; hyperparameters are chosen with ``--split validation``, which never looks at it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from ledger import do_all, read_lines

RESULTS = Path(__file__).parent / "results"
RECIPE = Path(__file__).parents[1] / "recipes" / "translation" / "multi30k_dense.yaml"
EPOCHS = 3
PATTERNS = ("2:4", "1:4", "1:8")
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("dense", {}),
    "ste": ("ste", {}),
    "sr_ste": ("sr_ste", {"form": "gradient", "decay": 2e-4}),
    "sr_ste-annealed": ("sr_ste", {"form": "gradient", "decay": 2e-3, "warmup_steps": 800}),
    "sr_ste-decoupled": ("sr_ste", {"form": "decoupled", "decay": 0.3}),
    "step": ("step", {}),
    "s_ste": ("s_ste", {}),
    "gradual": ("gradual", {}),
}
"""A row of the table: the method, and the options that make it this variant of it."""


@dataclass(frozen=True)
class Run:
    """One training."""

    variant: str
    pattern: str
    seed: int
    decay: float | None
    needs: ClassVar[None] = None

    @property
    def key(self) -> str:
        """A name that is also that of its folder."""
        parts = [self.variant]
        if self.pattern:
            parts.append(self.pattern.replace(":", "of"))
        if self.decay is not None:
            parts.append(f"decay{self.decay:g}")
        return "-".join([*parts, f"seed{self.seed}"])

    def words(self, more: list[str]) -> list[str]:
        """Its command line, but for the run folder."""
        method, options = VARIANTS[self.variant]
        if self.decay is not None:
            options = {**options, "decay": self.decay}
        words = ["--config", str(RECIPE), "--seed", str(self.seed), "--sparsity.method", method]
        words += ["--sparsity.method_options", json.dumps(options)]
        if self.pattern:
            words += ["--sparsity.pattern", self.pattern]
        quiet = ["--sparsity.print_report", "false", "--trainer.enable_progress_bar", "false"]
        quiet += ["--trainer.check_val_every_n_epoch", str(EPOCHS)]  # Decoding takes its time.
        return [*words, *quiet, "--trainer.accelerator", "cpu", *more]


def runs(arguments: argparse.Namespace) -> list[Run]:
    """All runs in order: seeds outermost, then dense, then the patterns one after the other."""
    found: list[Run] = []
    methods = sorted(arguments.methods, key=list(VARIANTS).index)
    for seed in range(arguments.seeds):
        found += [Run("dense", "", seed, None)] if "dense" in methods else []
        for pattern in arguments.patterns:
            for variant in (name for name in methods if name != "dense"):
                own = VARIANTS[variant][1].get("decay")
                decays = arguments.decays if own is not None and arguments.decays else [own]
                found += [Run(variant, pattern, seed, decay) for decay in decays]
    return found


def train(
    run: Run, folder: Path, typed: str, more: list[str], split: str, threads: int
) -> dict[str, Any]:
    """Train and score one network, going on from its last checkpoint; its line of the results."""
    folder = folder / run.key
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    from nmsparsity.tasks.evaluate import evaluate
    from nmsparsity.tasks.train import prepare, quiet

    quiet()
    torch.set_num_threads(threads)
    ready = prepare([*run.words(more), "--run_dir", str(folder)])
    result = ready.fit()
    if result is None:
        raise SystemExit(f"{run.key} was stopped; the same command goes on")
    # A run that was finished before has no history in memory.
    rows = torch.load(ready.folder.last, weights_only=True)["callbacks"]["History"]["rows"]
    options = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    counted, _ = evaluate([str(folder), "--data.split", split, *options])
    return {
        "key": run.key,
        **asdict(run),
        "overrides": more,
        "split": split,
        "averaged": (folder / "averaged.ckpt").exists(),
        **{name: counted[name] for name in ("bleu", "chrf", "loss", "perplexity", "sentences")},
        "signatures": [counted["bleu_signature"], counted["chrf_signature"]],
        "validation": {name: result[name] for name in ("bleu", "best_bleu", "loss")},
        **{name: result[name] for name in ("epochs", "density", "sad", "seconds", "cpu_seconds")},
        "precision": ready.trainer.precision,
        "curve": rows,
        "torch": torch.__version__,
        "command": typed,
    }


def say(line: dict[str, Any]) -> str:
    """What to print of a finished run."""
    said = f"BLEU {line['bleu']:.2f}  chrF {line['chrf']:.2f}"
    return f"{line['key']:36s} {said}  {line['cpu_seconds']:.0f} s"


def work(arguments: argparse.Namespace, more: list[str]) -> None:
    """Do all missing runs."""
    lines = read_lines(arguments.results)
    if any((line["overrides"], line["split"]) != (more, arguments.split) for line in lines):
        raise SystemExit(f"{arguments.results} has runs of other settings: give another --results")
    settings = {"more": more, "split": arguments.split, "threads": arguments.threads}
    folder = arguments.runs / arguments.results.stem
    one = partial(train, folder=folder, typed=command(), **settings)
    do_all(runs(arguments), one, arguments.results, arguments.processes, say)


def command() -> str:
    """What was typed."""
    return " ".join(["python benchmarks/translation.py", *sys.argv[1:]])


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The options; what is unknown is for `nmsparsity train`, such as --trainer.max_epochs 2."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--methods", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--patterns", nargs="+", default=list(PATTERNS))
    parser.add_argument("--decays", nargs="+", type=float, help="SR-STE's lambda, others than ours")
    parser.add_argument("--split", default="test", help="'validation' to choose hyperparameters")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--results", type=Path, default=RESULTS / "translation.jsonl")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of checkpoints")
    parser.add_argument("--report", action="store_true", help="write Markdown and plot only")
    return parser.parse_known_args()


if __name__ == "__main__":
    options, overrides = parse()
    if options.report:
        from translation_report import write_report

        write_report(options.results, read_lines(options.results))
    else:
        work(options, overrides)
