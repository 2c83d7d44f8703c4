"""Masks between COCO's run lengths and polygons, and tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nmsparsity.tasks.detection.coco_set import Segmentation


def decode(segmentation: Segmentation, height: int, width: int) -> Tensor:
    """A mask ``[height, width]``, uint8, of polygons or run lengths.

    Several polygons are parts of one object.

    >>> decode([[0, 0, 2, 0, 2, 2, 0, 2]], 3, 3).tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    """
    from faster_coco_eval.core import mask

    return torch.from_numpy(mask.decode(mask.segmToRle(segmentation, width, height)))


def decode_all(segmentations: Sequence[Segmentation], height: int, width: int) -> Tensor:
    """Masks ``[count, height, width]``, uint8."""
    out = torch.zeros(len(segmentations), height, width, dtype=torch.uint8)
    for number, segmentation in enumerate(segmentations):
        out[number] = decode(segmentation, height, width)
    return out


def encode(masks: Tensor) -> list[dict[str, Any]]:
    """Compressed run lengths, as in a results json, of masks ``[count, height, width]``.

    >>> encode(torch.ones(1, 2, 3, dtype=torch.bool))
    [{'size': [2, 3], 'counts': '06'}]
    """
    from faster_coco_eval.core import mask

    if not len(masks):
        return []
    columns = np.asfortranarray(masks.permute(1, 2, 0).to(torch.uint8).cpu().numpy())
    return [
        {"size": list(its["size"]), "counts": _text(its["counts"])} for its in mask.encode(columns)
    ]


def _text(counts: str | bytes) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts
