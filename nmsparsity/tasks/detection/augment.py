"""Augmentation of an image together with its boxes and masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

Sample: TypeAlias = tuple[Tensor, dict[str, Any]]
Masks: TypeAlias = Callable[[Sequence[int]], Tensor]
"""The masks ``[count, height, width]`` of the objects with these numbers."""


def fit_size(
    height: int, width: int, min_size: int | None, max_size: int, scale: float = 1.0
) -> tuple[int, int]:
    """The size ``(height, width)`` an image is brought to.

    The shorter side becomes ``min_size``, the longer ``max_size`` at most, both times ``scale``.
    ``min_size`` None keeps the image's own size, times ``scale``.

    >>> fit_size(480, 640, 240, 1333), fit_size(100, 1000, 240, 1000), fit_size(9, 9, None, 1, 2)
    ((240, 320), (100, 1000), (18, 18))
    """
    if min_size is not None:
        scale *= min(min_size / min(height, width), max_size / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


class Augmentation:
    """Scale jitter, a random crop and flips; boxes and masks follow, and leave with the crop.

    Draws come from torch's global generator.

    Args:
        min_size, max_size: for `fit_size`.
        scale: the range of the factor after that; ``(0.1, 2)`` with a crop is large-scale jitter
            (arXiv 2012.07177).
        crop: side in pixels of a window cut at random, padded with black where the image is
            smaller; None keeps the whole image.
        flip, vertical_flip: mirror half of the images left to right, upside down.

    >>> from torchvision import tv_tensors
    >>> boxes = tv_tensors.BoundingBoxes([[0, 0, 4, 4]], format="XYXY", canvas_size=(8, 8))
    >>> target = {"boxes": boxes, "labels": torch.tensor([1])}
    >>> image = tv_tensors.Image(torch.zeros(3, 8, 8))
    >>> image, target = Augmentation(4, 9, flip=False)(image, target)
    >>> list(image.shape), target["boxes"].tolist()
    ([3, 4, 4], [[0, 0, 2, 2]])
    """

    def __init__(
        self,
        min_size: int | None,
        max_size: int,
        *,
        scale: Sequence[float] = (1.0, 1.0),
        crop: int | None = None,
        flip: bool = True,
        vertical_flip: bool = False,
    ) -> None:
        self.min_size, self.max_size, self.scale, self.crop = min_size, max_size, scale, crop
        self.flips = v2.Compose(
            [
                v2.RandomHorizontalFlip(0.5 if flip else 0.0),
                v2.RandomVerticalFlip(0.5 if vertical_flip else 0.0),
            ]
        )
        self.sanitize = v2.SanitizeBoundingBoxes(min_size=1, labels_getter=_labels)

    def __call__(self, image: Tensor, target: dict[str, Any], masks: Masks | None = None) -> Sample:
        """A new image ``[3, height, width]`` and what is left of its objects.

        Args:
            image: uint8 ``[3, height, width]``.
            target: ``boxes`` and ``labels``.
            masks: gives masks of objects; it is asked for those that the crop left.
        """
        low, high = self.scale
        scale = low + (high - low) * float(torch.rand(()))
        height, width = functional.get_size(image)
        new = fit_size(height, width, self.min_size, self.max_size, scale)
        if self.crop:
            image, target = self._cut(image, target, new, masks)
        else:
            every = {} if masks is None else {"masks": masks(range(len(target["labels"])))}
            image, target = _resize(image, {**target, **every}, new)
        image, target = self.flips(image, target)
        image, target = self.sanitize(image, target)
        return image, _without_empty(target)

    def _cut(
        self, image: Tensor, target: dict[str, Any], new: tuple[int, int], masks: Masks | None
    ) -> Sample:
        """Crop first, in the pixels of the file: then few masks are decoded and resized."""
        assert self.crop is not None
        ratio = new[0] / functional.get_size(image)[0]
        window = max(1, round(self.crop / ratio))
        crop = v2.RandomCrop(window, pad_if_needed=True)
        place = crop.make_params([image])
        boxes = crop.transform(target["boxes"], place)
        numbers = torch.arange(len(target["labels"]))
        image, target = self.sanitize(
            crop.transform(image, place), {**target, "boxes": boxes, "objects": numbers}
        )
        left = target.pop("objects").tolist()
        if masks is not None:
            target["masks"] = crop.transform(masks(left), place)
        return _resize(image, target, (self.crop, self.crop))


def _resize(image: Tensor, target: dict[str, Any], size: tuple[int, int]) -> Sample:
    if tuple(functional.get_size(image)) == size:
        return image, target
    return v2.Resize(size, antialias=True)(image, target)  # type: ignore[no-any-return]


def _labels(sample: Any) -> tuple[Tensor, ...]:
    """What leaves with a box, beside its mask."""
    target = sample[1]
    return tuple(target[name] for name in ("labels", "objects") if name in target)


def _without_empty(target: dict[str, Any]) -> dict[str, Any]:
    """Without objects of whose box the crop left something, but nothing of the mask."""
    if "masks" not in target:
        return target
    there = target["masks"].flatten(1).bool().any(1)
    return {name: value[there] for name, value in target.items()}
