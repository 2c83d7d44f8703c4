"""Masks between COCO's run lengths and polygons, and tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks

from nmsparsity.tasks.detection.outlines import Segmentation


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


def encode_small(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5
) -> list[dict[str, Any]]:
    """Run lengths of masks as a head made them; one at a time is as large as the image.

    The same as torchvision's ``paste_masks_in_image``, then `encode`.

    Args:
        masks: ``[count, 1, side, side]``, from 0 to 1.
        boxes: ``[count, 4]`` as left, top, right, bottom.
        size: height and width of the image.
        threshold: least value inside an object.

    >>> encode_small(torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 0.0, 2.0, 1.0]]), (2, 3))
    [{'size': [2, 3], 'counts': '06'}]
    """
    from faster_coco_eval.core import mask

    padded, scale = expand_masks(masks.cpu(), 1)
    places = expand_boxes(boxes.cpu(), scale).long().tolist()
    canvas = np.zeros((*size, 1), np.uint8, order="F")
    found = []
    for (left, top, right, bottom), values in zip(places, padded, strict=True):
        sides = (max(bottom - top + 1, 1), max(right - left + 1, 1))
        grown = functional.interpolate(values[None], sides, mode="bilinear")[0, 0] >= threshold
        part = grown[max(-top, 0) : size[0] - top, max(-left, 0) : size[1] - left].numpy()
        rows, columns = (max(start, 0) for start in (top, left))
        window = canvas[rows : rows + part.shape[0], columns : columns + part.shape[1], 0]
        window[:] = part
        (its,) = mask.encode(canvas)
        found.append({"size": list(its["size"]), "counts": _text(its["counts"])})
        window[:] = 0
    return found


def _text(counts: str | bytes) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts
