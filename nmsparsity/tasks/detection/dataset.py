"""Detections: images with targets as torchvision's detectors want them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from nmsparsity.tasks.batches import draw_seed
from nmsparsity.tasks.detection.augment import Augmentation
from nmsparsity.tasks.detection.coco_set import CocoSet, Object, Photo
from nmsparsity.tasks.detection.masks import decode_all
from nmsparsity.tasks.detection.pixels import read_image

Target: TypeAlias = dict[str, Tensor]
Batch: TypeAlias = tuple[list[Tensor], list[Target]]


class Detections(Dataset[tuple[Tensor, Target]]):
    """``[i]`` is image ``i``, float32 ``[3, height, width]`` from 0 to 1, and its target.

    A target has ``boxes`` ``[objects, 4]`` as left, top, right, bottom; ``labels`` from 1;
    ``masks`` ``[objects, height, width]`` when asked for; ``image``, the number ``i``. Crowds are
    left out. Random draws depend on the key and the image's number only.

    Args:
        data: images and objects.
        augmentation: None leaves the images as they are, for evaluation.
        masks: whether to decode masks.
        key: seed and epoch.
    """

    def __init__(
        self,
        data: CocoSet,
        augmentation: Augmentation | None,
        *,
        masks: bool,
        key: tuple[int, ...] = (),
    ) -> None:
        self.data, self.augmentation, self.masks, self.key = data, augmentation, masks, key

    def __len__(self) -> int:
        return len(self.data.photos)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        photo = self.data.photos[index]
        image = read_image(photo.path)
        if self.augmentation is None:
            return _scaled(image), {"image": torch.tensor(index)}
        target = truth(photo)
        masks = partial(truth_masks, photo) if self.masks else None
        # Transforms of torchvision draw from torch's global generator; leave it as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw_seed(*self.key, index))
            image, target = self.augmentation(image, target, masks)
        plain = {name: value.as_subclass(Tensor) for name, value in target.items()}
        return _scaled(image), {**plain, "image": torch.tensor(index)}


def collate(samples: list[tuple[Tensor, Target]]) -> Batch:
    """Images of several sizes stay a list."""
    return [image for image, _ in samples], [target for _, target in samples]


def _scaled(image: Tensor) -> Tensor:
    scaled: Tensor = functional.to_dtype(image, torch.float32, scale=True).as_subclass(Tensor)
    return scaled


def truth(photo: Photo) -> dict[str, Any]:
    """``boxes`` and ``labels`` of an image's objects, without crowds."""
    objects = _learned(photo)
    boxes = torch.tensor([its.box for its in objects], dtype=torch.float32).reshape(-1, 4)
    size = (photo.height, photo.width)
    return {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),  # type: ignore[call-overload]
        "labels": torch.tensor([its.label for its in objects], dtype=torch.int64),
    }


def truth_masks(photo: Photo, numbers: Sequence[int] | None = None) -> Tensor:
    """Masks ``[count, height, width]`` of the objects of `truth` with these numbers, or of all."""
    objects = _learned(photo)
    chosen = objects if numbers is None else [objects[number] for number in numbers]
    found = decode_all(
        [o.segmentation for o in chosen if o.segmentation], photo.height, photo.width
    )
    masks: Tensor = tv_tensors.Mask(found)
    return masks


def _learned(photo: Photo) -> list[Object]:
    return [its for its in photo.objects if not its.crowd]
