"""WorkerLoader: batches of photos that are read from disk by worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nmsparsity.tasks.batches import Batches, draw_seed, generator


class Photos(Dataset[tuple[Tensor, int]]):
    """Photos with labels, transformed; random draws depend on the seed and the photo's number.

    Args:
        pairs: ``pairs[i]`` is an image (as PIL opens it) and its label.
        transform: from the image to a tensor.
        key: seed and epoch.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Any, int]],
        transform: Callable[[Any], Tensor],
        key: tuple[int, ...] = (),
    ) -> None:
        self.pairs, self.transform, self.key = pairs, transform, key

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.pairs[index]
        # Transforms of torchvision draw from torch's global generator; leave it as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw_seed(*self.key, index))
            return self.transform(image.convert("RGB")), label


class WorkerLoader(Batches):
    """Batches of photos, read and transformed by ``workers`` processes.

    Augmentation depends on seed, epoch and photo, not on the number of workers or processes.

    Args:
        pairs: ``pairs[i]`` is an image and its label.
        transform: from the image to a tensor ``[channels, height, width]``.
        batch_size: images per batch and process.
        train: shuffle.
        workers: processes that read; 0 reads in this one.
        seed: of order and augmentation.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Any, int]],
        transform: Callable[[Any], Tensor],
        batch_size: int,
        *,
        train: bool,
        workers: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__(len(pairs), batch_size, train=train, seed=seed)
        self.pairs, self.transform, self.workers = pairs, transform, workers

    def load(self, plan: list[Tensor], start: int) -> Iterator[tuple[Tensor, Tensor]]:
        photos = Photos(self.pairs, self.transform, (self.seed, self.epoch))
        yield from DataLoader(
            photos,
            batch_sampler=[index.tolist() for index in plan],
            num_workers=self.workers,
            # Unused by our transforms; without one it would draw from the global generator.
            generator=generator(self.seed, self.epoch),
            pin_memory=torch.cuda.is_available(),
        )
