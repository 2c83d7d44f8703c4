"""Boxes and masks drawn on images, and images side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import ImageColor
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes

from nmsparsity.tasks.detection.masks import decode, encode_small

COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#46f0f0", "#f032e6", "#bcf60c")
"""By label; again from the first after the last."""


def draw(
    image: Tensor,
    found: Mapping[str, Any],
    names: Sequence[str],
    *,
    threshold: float = 0.5,
) -> Tensor:
    """A new image with boxes, names and scores, and masks if there are any.

    Args:
        image: uint8 ``[3, height, width]``.
        found: ``boxes``, ``labels``, perhaps ``scores`` and ``masks``, as a detector gives them
            or as the truth has them; or ``small_masks`` and ``size`` as `Scaling` leaves them.
        names: of the categories, in the order of the labels.
        threshold: least score that is drawn.

    >>> blank = torch.zeros(3, 40, 40, dtype=torch.uint8)
    >>> box = {"boxes": torch.tensor([[5.0, 5.0, 30.0, 30.0]]), "labels": torch.tensor([1])}
    >>> int(draw(blank, box, ["cell"]).amax()) > 0
    True
    """
    scores = found.get("scores")
    keep = torch.ones(len(found["boxes"]), dtype=torch.bool)
    if scores is not None:
        keep = scores >= threshold
    boxes, labels = found["boxes"][keep], found["labels"][keep].tolist()
    if not len(boxes):
        return image.clone()
    colors = [COLORS[(label - 1) % len(COLORS)] for label in labels]
    if "masks" in found or "small_masks" in found:
        # With one category the masks are told apart by color instead.
        shades = colors if len(names) > 1 else [COLORS[i % len(COLORS)] for i in range(len(boxes))]
        image = _painted(image, found, keep.nonzero()[:, 0].tolist(), shades)
    words = [names[label - 1] for label in labels] if len(names) > 1 else [""] * len(labels)
    if scores is not None:
        said = scores[keep].tolist()
        words = [f"{w} {value:.2f}".strip() for w, value in zip(words, said, strict=True)]
    # Hundreds of scores would cover the image.
    shown = words if len(words) <= 20 * len(names) and any(words) else None
    drawn: Tensor = draw_bounding_boxes(image, boxes, shown, colors=colors, width=1)
    return drawn


def _painted(
    image: Tensor, found: Mapping[str, Any], numbers: list[int], colors: Sequence[str]
) -> Tensor:
    """Masks one after the other, since together they take objects x pixels of memory; the earlier
    one, of the better score, on top."""
    paint = image.clone()
    for number, color in zip(reversed(numbers), reversed(colors), strict=True):
        shade = torch.tensor(ImageColor.getrgb(color), dtype=torch.uint8)
        paint[:, _mask(found, number)] = shade[:, None]
    return (0.5 * image + 0.5 * paint).to(torch.uint8)


def _mask(found: Mapping[str, Any], number: int) -> Tensor:
    one = slice(number, number + 1)
    if "small_masks" in found:
        size = found["size"]
        (runs,) = encode_small(found["small_masks"][one], found["boxes"][one], size)
        return decode(runs, *size).bool()
    mask: Tensor = found["masks"][number]
    return mask[0] >= 0.5 if mask.dim() == 3 else mask.bool()


def side_by_side(rows: Sequence[Sequence[Tensor]], height: int = 320) -> Tensor:
    """Rows of images as one, each scaled to ``height``; rows may differ in width."""
    lines = [torch.cat([_scaled(image, height) for image in row], 2) for row in rows]
    width = max(line.shape[2] for line in lines)
    padded = [functional.pad(line, (0, width - line.shape[2], 0, 6), value=255) for line in lines]
    return torch.cat(padded, 1)


def save_image(image: Tensor, path: str | Path) -> None:
    """Write an image, uint8 ``[3, height, width]``; the ending says the format."""
    path = Path(path)
    beside = path.with_name(f".{path.name}{path.suffix}")
    to_pil_image(image).save(beside)
    os.replace(beside, path)


def _scaled(image: Tensor, height: int) -> Tensor:
    width = max(1, round(image.shape[2] * height / image.shape[1]))
    small = functional.interpolate(image[None].float(), (height, width), mode="area")[0]
    return functional.pad(small.round().to(torch.uint8), (0, 6), value=255)
