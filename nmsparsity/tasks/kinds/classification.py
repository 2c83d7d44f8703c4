"""Classification of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nmsparsity.tasks.classification import ClassificationTask
from nmsparsity.tasks.data import ImageData
from nmsparsity.tasks.kinds.base import Kind, not_validated

TRAIN = """
Train a classifier, dense or N:M sparse from scratch.

A recipe is a YAML file; several are laid over each other, and any field can be set by name:

  nmsparsity train --config recipes/classification/fashion_mnist_2of4.yaml
  nmsparsity train --config recipes/classification/cifar10_2of4.yaml --sparsity.pattern 1:8
  nmsparsity train --config my.yaml --sparsity.method ste --trainer.max_epochs 3 --seed 1
  torchrun --nproc_per_node 8 -m nmsparsity train --config recipes/classification/resnet50_2of4.yaml

The same command again goes on where it was interrupted. What a run leaves in its folder:
config.yaml (all fields resolved), history.csv, last.ckpt, best.ckpt, result.json.
--trainer.fast_dev_run 2 tries a recipe for two steps and leaves nothing.
"""

EVALUATE = """
Count a trained network's answers on the whole validation set.

  nmsparsity evaluate runs/cifar10_2of4/seed0                # a run folder: its best epoch
  nmsparsity evaluate runs/cifar10_2of4/seed0/last.ckpt
  nmsparsity evaluate model.safetensors --data.root /data    # a packed file

Model and data are those of the training, which are written in the file; every field of data and
trainer can be overridden.
"""


def trained(result: Mapping[str, Any]) -> str:
    if "top1" not in result:
        return not_validated(result)
    return (
        f"top-1 {result['top1']:.2f} % after {result['epochs']} epochs (best "
        f"{result['best_top1']:.2f} %), {result['images']:,} images"
    )


def evaluated(counted: Mapping[str, Any]) -> str:
    share = counted["top1"] / 100
    error = 100 * (share * (1 - share) / counted["images"]) ** 0.5
    return (
        f"top-1 {counted['top1']:.2f} ± {error:.2f} %, top-5 {counted['top5']:.2f} %, loss "
        f"{counted['loss']:.4f}, {counted['images']:,} images (± is the standard error)"
    )


KIND = Kind(
    task=ClassificationTask,
    data=ImageData,
    links=("classes", "in_channels"),
    monitor="val/top1",
    mode="max",
    train_help=TRAIN,
    evaluate_help=EVALUATE,
    trained=trained,
    evaluated=evaluated,
)
