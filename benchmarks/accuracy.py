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
import json
import logging
import os
import sys
import warnings
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

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


def train(run: Run, recipe: Recipe, folder: Path, threads: int) -> dict[str, Any]:
    """Train one network, from its last checkpoint if there is one; its line of the results."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch
    from lightning import pytorch as pl

    from nmsparsity.tasks.history import History
    from nmsparsity.tasks.run_folder import RunFolder

    quiet()
    torch.set_num_threads(threads)
    pl.seed_everything(run.seed, verbose=False)
    data, evaluation = loaders(recipe, run.seed)
    start = folder.parent / str(run.needs) / "last.ckpt" if run.needs else None
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


def read_results(path: Path) -> list[dict[str, Any]]:
    """The finished runs; a half-written last line is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]


def work(arguments: argparse.Namespace, recipe: Recipe) -> None:
    """Do all missing runs, several at a time, and write down each as it ends."""
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    lines = read_results(arguments.results)
    if any(line["recipe"] != asdict(recipe) for line in lines):
        raise SystemExit(f"{arguments.results} has runs of another recipe: give another --results")
    done = {line["key"] for line in lines}
    todo = [run for run in runs(arguments) if run.key not in done]
    print(f"{len(done)} runs done, {len(todo)} to do", flush=True)
    folder = arguments.runs / arguments.results.stem
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
        busy: dict[Future[dict[str, Any]], Run] = {}
        while todo or busy:
            for run in [run for run in todo if run.needs is None or run.needs in done]:
                if len(busy) < arguments.processes:
                    task = pool.submit(train, run, recipe, folder / run.key, arguments.threads)
                    busy[task] = run
                    todo.remove(run)
            if not busy:
                raise SystemExit(f"{todo[0].key} needs {todo[0].needs}: add 'dense' to --methods")
            for task in wait(busy, return_when=FIRST_COMPLETED).done:
                line = {**task.result(), "command": command()}
                with arguments.results.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                done.add(busy.pop(task).key)
                print(
                    f"{line['key']:36s} {line['top1']:.2f} %  {line['cpu_seconds']:.0f} s",
                    flush=True,
                )


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

        write_report(options.results, read_results(options.results))
    else:
        work(options, shared_recipe)
