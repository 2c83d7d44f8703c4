"""Train a dense and a 2:4 network side by side on real images, and compare them: ``make demo``.

The images are the excerpt of Fashion-MNIST in ``data/fashion_mnist``, or the full set when it lies
in the data folder (NMSPARSITY_DATA). Both trainings run at the same time, one thread each, so that
their processor times can be compared whatever else the machine does.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from multiprocessing import get_context
from pathlib import Path
from queue import Empty
from typing import Any

from nmsparsity.table import table

ROOT = Path(__file__).parents[1]
EXCERPT = ROOT / "data" / "fashion_mnist"
RECIPES = {"dense": "fashion_mnist_dense.yaml", "2:4 SR-STE": "fashion_mnist_2of4.yaml"}


def source() -> Path:
    """The full set where it is, else the excerpt that comes with the repository."""
    from nmsparsity.tasks.roots import data_root

    full = data_root() / "fashion_mnist"
    return full if full.is_dir() else EXCERPT


def train(name: str, words: list[str], folder: Path, progress: Any) -> dict[str, Any]:
    """One network by its recipe, in a process of its own: what `nmsparsity train` does, packed."""
    import torch
    from lightning.pytorch import Callback

    from nmsparsity.tasks.packing import pack
    from nmsparsity.tasks.train import prepare, quiet

    class Tell(Callback):
        """Send every step to the process that draws the bars."""

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            self.on_train_epoch_end(trainer)

        def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
            steps = trainer.num_training_batches * trainer.max_epochs
            top1 = trainer.callback_metrics.get("val/top1")
            said = "" if top1 is None else f"top-1 {float(top1):.2f} %"
            progress.put((name, trainer.global_step, steps, said))

    quiet()
    torch.set_num_threads(1)
    run = prepare([*words, "--run_dir", str(folder)], [Tell()])
    result = run.fit()
    if result is None:
        raise RuntimeError(f"{name}: stopped")
    packed, dense = pack(folder / "last.ckpt", folder / "model.safetensors")
    report = str(run.sparsity.sparsifier.report())
    more = {"rows": run.history.rows, "report": report}
    return {**result, "packed": packed, "dense_bytes": dense, **more}


def train_both(folder: Path, epochs: int) -> dict[str, dict[str, Any]]:
    """Both networks at the same time, with a progress bar each."""
    # For the processes that are started here: one thread each, from the first import on.
    os.environ["OMP_NUM_THREADS"] = "1"
    context = get_context("spawn")
    with ProcessPoolExecutor(len(RECIPES), context) as pool, context.Manager() as manager:
        progress = manager.Queue()
        work = {}
        for name, recipe in RECIPES.items():
            words = ["--config", str(ROOT / "recipes" / "classification" / recipe)]
            words += ["--data.source", str(source()), "--trainer.max_epochs", str(epochs)]
            words += ["--trainer.enable_progress_bar", "false", "--sparsity.print_report", "false"]
            words += ["--trainer.accelerator", "cpu"]
            place = folder / Path(recipe).stem
            work[name] = pool.submit(train, name, words, place, progress)
        draw(progress, list(work.values()))
        return {name: task.result() for name, task in work.items()}


def draw(progress: Any, work: list[Future[dict[str, Any]]]) -> None:
    """Move the bars until all trainings have ended."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    columns = (TextColumn("{task.description:12}"), BarColumn(), MofNCompleteColumn(), TimeLeft())
    with Progress(*columns, TextColumn("{task.fields[said]}")) as bars:
        bar = {name: bars.add_task(name, total=None, said="starting") for name in RECIPES}
        while not all(task.done() for task in work):
            for name, step, steps, said in messages(progress):
                bars.update(bar[name], completed=step, total=steps, said=said)
            wait_for(work, timeout=0.2)
            if any(task.done() and task.exception() for task in work):
                return
        for name, step, steps, said in messages(progress):
            bars.update(bar[name], completed=step, total=steps, said=said)


def messages(progress: Any) -> Iterator[tuple[str, int, int, str]]:
    """What has been sent so far."""
    while True:
        try:
            yield progress.get_nowait()
        except Empty:
            return


def compare(results: dict[str, dict[str, Any]]) -> str:
    """The closing table."""
    seconds = results["dense"]["cpu_seconds"]
    head = ("network", "top-1 %", "density", "SAD", "bytes dense", "bytes packed", "time ratio")
    rows = [
        (
            name,
            f"{result['top1']:.2f}",
            f"{result['density']:.3f}",
            f"{result['sad']:,.0f}",
            f"{result['dense_bytes']:,}",
            f"{result['packed']:,}",
            f"{result['cpu_seconds'] / seconds:.2f}",
        )
        for name, result in results.items()
    ]
    return table(head, rows)


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Accuracy and SAD, epoch by epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, result in results.items():
        rows = result["rows"]
        epochs = [row["epoch"] for row in rows]
        left.plot(epochs, [row["val/top1"] for row in rows], marker="o", label=name)
        if any("sparsity/sad_normalized" in row for row in rows) and name != "dense":
            sad = [row.get("sparsity/sad_normalized", 0.0) for row in rows]
            right.plot(epochs, sad, marker="o", label=name)
    left.set(xlabel="epoch", ylabel="top-1 on test images, %")
    right.set(xlabel="epoch", ylabel="mask elements changed (SAD / n)")
    left.legend()
    right.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/demo"), help="emptied first")
    parser.add_argument("--epochs", type=int, help="default: 12 of the excerpt, 6 of the full set")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    epochs = options.epochs or (12 if source() == EXCERPT else 6)
    results = train_both(options.folder, epochs)
    print(f"\n{results['2:4 SR-STE']['report']}\n\n{compare(results)}")
    plot(results, options.folder / "curves.png")
    print(
        f"\nTop-1 on {results['dense']['images']:,} test images of {source()}; training time as "
        f"processor time, one thread each.\nCurves: {options.folder / 'curves.png'}"
    )


if __name__ == "__main__":
    main()
