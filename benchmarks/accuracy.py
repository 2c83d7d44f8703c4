"""Accuracy of dense, STE, SR-STE and fixed masks on CIFAR-10: one recipe, several seeds.

    python benchmarks/accuracy.py --processes 2 --threads 1      # the whole table, resumable
    python benchmarks/accuracy.py --report                       # results/accuracy.md and plots
    python benchmarks/accuracy.py --validation 5000 --seeds 1 --methods sr_ste --patterns 2:4 1:8 \
        --decays 0 2e-5 6e-5 2e-4 6e-4 2e-3 6e-3 --results benchmarks/results/decay.jsonl

Every finished run is one line of the results file and is not done again; a run that was stopped
goes on from its last epoch. Seeds are the outer loop: a part of the file is a whole table of
fewer seeds. All methods of one seed share the initial weights and the order of the images.
``fixed`` starts from the dense network of the same seed and trains a second time, as in ASP.
What is reported is the test accuracy of the last epoch; hyperparameters are chosen with
``--validation``, which holds images out of the training set and never touches the test set.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from ledger import do_all, read_lines

RESULTS = Path(__file__).parent / "results"
PATTERNS = ("2:4", "1:4", "1:8", "1:16")
METHODS = ("dense", "ste", "sr_ste", "fixed")


@dataclass(frozen=True)
class Recipe:
    """What all runs of a table share."""

    epochs: int = 14
    width: int = 16
    lr: float = 0.2
    weight_decay: float = 5e-4
    warmup_epochs: float = 0.5
    batch_size: int = 128
    stem_stride: int = 2
    validation: int = 0
    root: str | None = None


@dataclass(frozen=True)
class Run:
    """One training."""

    method: str
    pattern: str
    seed: int
    decay: float

    @property
    def key(self) -> str:
        """A name that is also that of its folder."""
        parts = [self.method]
        if self.method != "dense":
            parts.append(self.pattern.replace(":", "of"))
        if self.method == "sr_ste":
            parts.append(f"decay{self.decay:g}")
        return "-".join([*parts, f"seed{self.seed}"])

    @property
    def needs(self) -> str | None:
        """The run that has to be done before this one."""
        return Run("dense", "", self.seed, 0.0).key if self.method == "fixed" else None


def runs(arguments: argparse.Namespace) -> list[Run]:
    """All runs in order: seeds outermost, dense first and fixed last within each."""
    found: list[Run] = []
    for seed in range(arguments.seeds):
        for method in sorted(arguments.methods, key=METHODS.index):
            patterns = [""] if method == "dense" else arguments.patterns
            decays = arguments.decays if method == "sr_ste" else [0.0]
            found += [Run(method, p, seed, decay) for p in patterns for decay in decays]
    return found


def train(run: Run, recipe: Recipe, folder: Path, typed: str, threads: int) -> dict[str, Any]:
    """Train one network, from its last checkpoint if there is one; its line of the results."""
    start = folder / str(run.needs) / "last.ckpt" if run.needs else None
    folder = folder / run.key
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch
    from lightning import pytorch as pl

    from nmsparsity.tasks.history import History
    from nmsparsity.tasks.run_folder import RunFolder

    quiet()
    torch.set_num_threads(threads)
    pl.seed_everything(run.seed, verbose=False)
    data, evaluation = loaders(recipe, run.seed)
    task = build_task(recipe, start)
    sparsity, history = build_sparsity(run), History()
    saver = RunFolder(folder, {"task": asdict(recipe), "run": asdict(run)})
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=recipe.epochs,
        callbacks=[sparsity, history, saver],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    resume = saver.resume()
    saver.write_config()
    trainer.fit(task, data, evaluation, ckpt_path=resume and str(resume))
    weights = [p for p in task.model.parameters() if p.dim() > 1]
    kept = sum(int(torch.count_nonzero(p)) for p in weights)
    return {
        "key": run.key,
        **asdict(run),
        "recipe": asdict(recipe),
        "top1": history.rows[-1]["val/top1"],
        "best_top1": task.best_top1,
        "loss": history.rows[-1]["val/loss"],
        "images": history.rows[-1]["val/images"],
        "density": kept / sum(p.numel() for p in weights),
        "curve": history.rows,
        "sad": sparsity.history,
        "maskable": sum(p.numel() for p in sparsity.sparsifier.weights().values()),
        "wall_seconds": history.rows[-1]["seconds"],
        "cpu_seconds": history.rows[-1]["cpu_seconds"],
        "torch": torch.__version__,
        "command": typed,
    }


def quiet() -> None:
    """No banners of Lightning between our own lines."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*treespec.*")


def loaders(recipe: Recipe, seed: int) -> tuple[Any, Any]:
    """Training and evaluation batches; the moments are those of the training images."""
    from nmsparsity.tasks.memory_loader import MemoryLoader

    training, evaluation = images(recipe.root)
    if recipe.validation:
        training, evaluation = training.split(recipe.validation)
    mean, std = training.moments()
    return (
        MemoryLoader(training, recipe.batch_size, mean, std, train=True, seed=seed),
        MemoryLoader(evaluation, 250, mean, std, train=False),
    )


@lru_cache(maxsize=1)
def images(root: str | None) -> tuple[Any, Any]:
    """CIFAR-10, decoded once in each process."""
    from nmsparsity.tasks.sources import read_small_images

    return read_small_images("cifar10", root)


def build_task(recipe: Recipe, start: Path | None) -> Any:
    from nmsparsity.tasks.classification import SGD, ClassificationTask

    return ClassificationTask(
        "small_resnet8",
        {"width": recipe.width, "stem_stride": recipe.stem_stride},
        classes=10,
        optimizer=SGD(
            lr=recipe.lr, weight_decay=recipe.weight_decay, warmup_epochs=recipe.warmup_epochs
        ),
        init_from=None if start is None else str(start),
    )


def build_sparsity(run: Run) -> Any:
    from nmsparsity.integrations.lightning import SparsityCallback

    options = {"decay": run.decay} if run.method == "sr_ste" else {}
    return SparsityCallback(
        run.pattern or "2:4", run.method, method_options=options, print_report=False
    )


def say(line: dict[str, Any]) -> str:
    """What to print of a finished run."""
    return f"{line['key']:36s} {line['top1']:.2f} %  {line['cpu_seconds']:.0f} s"


def work(arguments: argparse.Namespace, recipe: Recipe) -> None:
    """Do all missing runs."""
    lines = read_lines(arguments.results)
    if any(line["recipe"] != asdict(recipe) for line in lines):
        raise SystemExit(f"{arguments.results} has runs of another recipe: give another --results")
    folder = arguments.runs / arguments.results.stem
    settings = {"recipe": recipe, "folder": folder, "threads": arguments.threads}
    one = partial(train, typed=command(), **settings)
    do_all(runs(arguments), one, arguments.results, arguments.processes, say)


def command() -> str:
    """What was typed, without where the data lies."""
    words = sys.argv[1:]
    if "--root" in words:
        del words[words.index("--root") : words.index("--root") + 2]
    return " ".join(["python benchmarks/accuracy.py", *words])


def parse() -> tuple[argparse.Namespace, Recipe]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--patterns", nargs="+", default=list(PATTERNS))
    parser.add_argument("--decays", nargs="+", type=float, default=[2e-4], help="SR-STE's lambda")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--results", type=Path, default=RESULTS / "accuracy.jsonl")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of checkpoints")
    parser.add_argument("--report", action="store_true", help="write Markdown and plots only")
    shared = asdict(Recipe())
    for name, value in shared.items():
        kind = str if value is None else type(value)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value)
    arguments = parser.parse_args()
    return arguments, Recipe(**{name: getattr(arguments, name) for name in shared})


if __name__ == "__main__":
    options, shared_recipe = parse()
    if options.report:
        from accuracy_report import write_report

        write_report(options.results, read_lines(options.results))
    else:
        work(options, shared_recipe)
