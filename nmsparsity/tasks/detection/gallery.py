"""Gallery: what a finished run shows: its predictions, some of them drawn, its curves."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from nmsparsity.plots import plot_history
from nmsparsity.tasks.detection.coco_set import CocoSet
from nmsparsity.tasks.detection.dataset import Detections, truth, truth_masks
from nmsparsity.tasks.detection.draw import draw, save_image, side_by_side
from nmsparsity.tasks.detection.pixels import read_image
from nmsparsity.tasks.detection.scaling import small_masks
from nmsparsity.tasks.history import History
from nmsparsity.tasks.run_folder import RunFolder

CURVES = {
    "loss": ("train/",),
    "AP (%)": ("val/box_ap", "val/box_ap50", "val/mask_ap", "val/mask_ap50"),
    "SAD / weights": ("sparsity/sad_normalized",),
}


class Gallery(Callback):
    """At the end of a fit with a run folder, writes there:

    ``predictions.json``, the detections of the last validation as a COCO results json;
    ``predictions.png``, the truth beside the predictions of ``count`` validation images;
    ``curves.png``, losses, AP and SAD over the epochs.

    Args:
        count: images of the picture.
    """

    def __init__(self, count: int = 6) -> None:
        self.count = count

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write them, on the first process."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        folders = [its for its in callbacks if isinstance(its, RunFolder)]
        if not folders or not trainer.is_global_zero:
            return
        task: Any = module
        path = folders[0].path
        if task.precision is not None:  # Else this process has validated nothing.
            write_results(task.results, path / "predictions.json")
        data: CocoSet = trainer.datamodule.evaluation  # type: ignore[attr-defined]
        save_image(grid([task.model], data, self.count), path / "predictions.png")
        for history in callbacks:
            if isinstance(history, History):
                plot_history(history.rows, CURVES, path / "curves.png")


def write_results(results: list[dict[str, Any]], path: Path) -> None:
    """Write a COCO results json."""
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(results))
    os.replace(beside, path)


@torch.no_grad()
def grid(models: list[Any], data: CocoSet, count: int, threshold: float = 0.5) -> Tensor:
    """A picture of one row an image: the truth, then what each of the detectors finds.

    Args:
        models: detectors.
        data: images and objects.
        count: images, evenly spread over the set.
        threshold: least score that is drawn.
    """
    names = list(data.categories.values())
    images = Detections(data, None, masks=False)
    rows = []
    for index in range(0, len(data.photos), max(1, len(data.photos) // count)):
        photo = data.photos[index]
        pixels = read_image(photo.path)
        masks = {"masks": truth_masks(photo)} if data.has_masks else {}
        row = [draw(pixels, truth(photo) | masks, names)]
        for model in models:
            device = next(model.parameters()).device
            was = model.training
            with small_masks(model):
                (found,) = model.eval()([images[index][0].to(device)])
            model.train(was)
            there = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in found.items()}
            row.append(draw(pixels, there, names, threshold=threshold))
        rows.append(row)
        if len(rows) == count:
            break
    return side_by_side(rows)
