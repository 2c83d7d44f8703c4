"""The kind ``segmentation``: a mask for every object on images, scored as COCO does."""

from __future__ import annotations

from nmsparsity.tasks.detection.data import SegmentationData
from nmsparsity.tasks.detection.task import SegmentationTask
from nmsparsity.tasks.kinds.base import Kind
from nmsparsity.tasks.kinds.detection import LINKS, sentences

TRAIN = """
Train an instance segmenter (Mask R-CNN), dense or N:M sparse.

  nmsparsity train --config recipes/segmentation/nuclei_2of4.yaml
  torchrun --nproc_per_node 8 -m nmsparsity train --config recipes/detection/coco.yaml \\
      --config recipes/segmentation/mask_rcnn_r50_2of4.yaml

Data are COCO's: a folder of images and a json of each split, polygons or run lengths. The run
folder is that of kind detection.
"""

EVALUATE = """
Score the boxes and masks of a trained segmenter on the whole validation set, as COCO does.

  nmsparsity evaluate runs/nuclei_2of4/seed0                       # a run folder: its best epoch
  nmsparsity evaluate model.safetensors --data.root /data          # a packed file
"""

_trained, _evaluated = sentences("box", "mask")
KIND = Kind(
    task=SegmentationTask,
    data=SegmentationData,
    links=LINKS,
    monitor="val/mask_ap",
    mode="max",
    train_help=TRAIN,
    evaluate_help=EVALUATE,
    trained=_trained,
    evaluated=_evaluated,
)
