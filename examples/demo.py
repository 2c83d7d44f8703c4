"""Train a dense and a 2:4 network on real images, and compare them: ``make demo``.

The images are the excerpt of Fashion-MNIST in ``data/fashion_mnist``, or the full set when it lies
in the data folder (NMSPARSITY_DATA).
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

from nmsparsity.table import table

ROOT = Path(__file__).parents[1]
RECIPES = {"dense": "fashion_mnist_dense.yaml", "2:4 SR-STE": "fashion_mnist_2of4.yaml"}


def source() -> str:
    """The full set where it is, else the excerpt that comes with the repository."""
    full = Path(os.environ.get("NMSPARSITY_DATA", "~/.cache/nmsparsity")).expanduser()
    found = full / "fashion_mnist"
    return str(found if found.is_dir() else ROOT / "data" / "fashion_mnist")


def train(name: str, folder: Path, epochs: int | None) -> dict[str, Any]:
    """One network by its recipe: what `nmsparsity train` does, and its packed file."""
    from nmsparsity.tasks.packing import pack
    from nmsparsity.tasks.train import prepare, quiet

    quiet()
    recipe = ROOT / "recipes" / "classification" / RECIPES[name]
    words = ["--config", str(recipe), "--data.source", source(), "--run_dir", str(folder)]
    if epochs is not None:
        words += ["--trainer.max_epochs", str(epochs)]
    print(f"\n== {name} ==", flush=True)
    run = prepare(words)
    result = run.fit()
    if result is None:
        raise SystemExit("stopped")
    packed, dense = pack(str(folder / "last.ckpt"), str(folder / "model.safetensors"))
    return {**result, "packed": packed, "dense_bytes": dense, "rows": run.history.rows}


def compare(results: dict[str, dict[str, Any]]) -> str:
    """The closing table."""
    seconds = results["dense"]["seconds"]
    head = ("network", "top-1 %", "density", "SAD", "bytes dense", "bytes packed", "time ratio")
    rows = [
        (
            name,
            f"{result['top1']:.2f}",
            f"{result['density']:.3f}",
            f"{result['sad']:,.0f}",
            f"{result['dense_bytes']:,}",
            f"{result['packed']:,}",
            f"{result['seconds'] / seconds:.2f}",
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
    parser.add_argument("--epochs", type=int, default=None, help="default: the recipes'")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    results = {
        name: train(name, options.folder / Path(recipe).stem, options.epochs)
        for name, recipe in RECIPES.items()
    }
    print(f"\n{compare(results)}")
    plot(results, options.folder / "curves.png")
    print(f"\ncurves: {options.folder / 'curves.png'}")


if __name__ == "__main__":
    main()
