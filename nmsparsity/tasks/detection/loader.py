"""DetectionLoader: batches of images of like shape, read by worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from nmsparsity.tasks.batches import Batches, generator, rank_and_world
from nmsparsity.tasks.detection.augment import Augmentation
from nmsparsity.tasks.detection.coco_set import CocoSet
from nmsparsity.tasks.detection.dataset import Detections, collate


def by_shape(order: Tensor, wide: Sequence[bool], size: int) -> list[Tensor]:
    """Groups of ``size`` image numbers, wide with wide and high with high ones.

    What is left of both is put together, and an incomplete last group is dropped: there are
    ``len(order) // size``. A batch of wide and high images together would be padded to a square.

    Args:
        order: the image numbers in random order.
        wide: of each image, whether it is wider than high.
        size: images of a group.

    >>> groups = by_shape(torch.arange(7), [True, False] * 4, 2)
    >>> [group.tolist() for group in groups]
    [[0, 2], [1, 3], [4, 6]]
    """
    groups: list[list[int]] = []
    open_ones: tuple[list[int], list[int]] = ([], [])
    for number in order.tolist():
        waiting = open_ones[wide[number]]
        waiting.append(number)
        if len(waiting) == size:
            groups.append(waiting.copy())
            waiting.clear()
    left = [*open_ones[0], *open_ones[1]]
    groups += [left[start : start + size] for start in range(0, len(left), size)]
    return [torch.tensor(group) for group in groups if len(group) == size]


class DetectionLoader(Batches):
    """Batches ``(images, targets)``, lists of one entry an image.

    Order, groups and augmentation depend on seed and epoch, not on the number of workers or
    processes.

    Args:
        data: images and objects.
        batch_size: images per batch and process.
        augmentation: of training; None evaluates.
        masks: whether targets have masks.
        workers: processes that read; 0 reads in this one.
        seed: of order and augmentation.
    """

    def __init__(
        self,
        data: CocoSet,
        batch_size: int,
        augmentation: Augmentation | None,
        *,
        masks: bool,
        workers: int = 4,
        seed: int = 0,
    ) -> None:
        train = augmentation is not None
        super().__init__(len(data.photos), batch_size, train=train, seed=seed)
        self.data, self.augmentation = data, augmentation
        self.masks, self.workers = masks, workers

    def plan(self) -> list[Tensor]:
        """The image numbers of each batch of the epoch."""
        rank, world = rank_and_world()
        if not self.train:
            return super().plan()
        draws = generator(self.seed, self.epoch)
        order = torch.randperm(self.count, generator=draws)
        wide = [photo.width > photo.height for photo in self.data.photos]
        groups = by_shape(order, wide, self.batch_size * world)
        # Else the leftovers would always come last.
        turns = torch.randperm(len(groups), generator=draws).tolist()
        return [groups[turn][rank::world] for turn in turns]

    def load(self, plan: list[Tensor], start: int) -> Iterator[Any]:
        key = (self.seed, self.epoch)
        data = Detections(self.data, self.augmentation, masks=self.masks, key=key)
        yield from DataLoader(
            data,
            batch_sampler=[index.tolist() for index in plan],
            num_workers=self.workers,
            collate_fn=collate,
            # Unused by our transforms; without one it would draw from the global generator.
            generator=generator(self.seed, self.epoch),
            pin_memory=torch.cuda.is_available(),
        )
