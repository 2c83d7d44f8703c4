"""The kind ``detection``: boxes of objects on images, scored as COCO does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nmsparsity.tasks.detection.data import DetectionData
from nmsparsity.tasks.detection.task import DetectionTask
from nmsparsity.tasks.kinds.base import Kind, not_validated

TRAIN = """
Train a detector of objects, dense or N:M sparse.

  nmsparsity train --config recipes/detection/bccd_2of4.yaml
  nmsparsity train --config recipes/detection/bccd_2of4.yaml --sparsity.pattern 1:4
  torchrun --nproc_per_node 8 -m nmsparsity train --config recipes/detection/coco.yaml \\
      --config recipes/detection/faster_rcnn_r50_2of4.yaml

Data are COCO's: a folder of images and a json of each split, checked before training starts.

The same command again goes on where it was interrupted. What a run leaves in its folder:
config.yaml, categories.json, history.csv, last.ckpt, best.ckpt, result.json; predictions.json (the
last validation's, as a COCO results json), predictions.png (some of them, drawn), curves.png.
"""

EVALUATE = """
Score a trained detector on the whole validation set, as COCO does.

  nmsparsity evaluate runs/bccd_2of4/seed0                         # a run folder: its best epoch
  nmsparsity evaluate model.safetensors --data.root /data          # a packed file
  nmsparsity evaluate runs/bccd_2of4/seed0 --data.val test         # another split
"""
LINKS = ("categories", "min_size", "max_size", "seed")


def sentences(
    *kinds: str,
) -> tuple[Callable[[Mapping[str, Any]], str], Callable[[Mapping[str, Any]], str]]:
    """What to say about a training and an evaluation that score ``box``, ``mask`` or both."""

    def trained(result: Mapping[str, Any]) -> str:
        if f"{kinds[-1]}_ap" not in result:
            return not_validated(result)
        found = ", ".join(f"{kind} AP {result[f'{kind}_ap']:.2f}" for kind in kinds)
        best = result[f"best_{kinds[-1]}_ap"]
        return (
            f"{found} after {result['epochs']} epochs (best {kinds[-1]} AP {best:.2f}), "
            f"{result['images']:,} images"
        )

    def evaluated(counted: Mapping[str, Any]) -> str:
        lines = [_line(counted, kind) for kind in kinds]
        return "\n".join(
            [*lines, f"{counted['images']:,} images; percent, -1: nothing of the kind"]
        )

    return trained, evaluated


def _line(counted: Mapping[str, Any], kind: str) -> str:
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar")
    found = (f"{name.upper().replace('_', ' ')} {counted[f'{kind}_{name}']:.2f}" for name in names)
    return f"{kind}: {', '.join(found)}"


_trained, _evaluated = sentences("box")
KIND = Kind(
    task=DetectionTask,
    data=DetectionData,
    links=LINKS,
    monitor="val/box_ap",
    mode="max",
    train_help=TRAIN,
    evaluate_help=EVALUATE,
    trained=_trained,
    evaluated=_evaluated,
)
