"""MemoryLoader: batches of an ImageSet, augmented as whole tensors, repeatable and resumable."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, distributed

from nmsparsity.tasks.augment import crop_flip, normalize
from nmsparsity.tasks.image_set import ImageSet


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) outside distributed training."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def generator(*key: int) -> torch.Generator:
    """A random generator that depends on all numbers of the key and on nothing else."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(seed)


class MemoryLoader:
    """Iterates over ``(images, labels)`` batches, this process's share of them.

    When training, the order depends on ``(seed, epoch)`` alone and the augmentation on
    ``(seed, epoch, batch, rank)``, so that a resumed epoch goes on as if it had never stopped:
    Lightning saves `state_dict` in its checkpoints. All processes get the same number of full
    batches. When evaluating (``train=False``), every image comes exactly once over all processes:
    nothing is repeated to make shares equal.

    Args:
        data: the images.
        batch_size: images per batch and process.
        mean, std: moments of each channel for `normalize`.
        train: shuffle, augment, drop the last short batch.
        padding, flip: for `crop_flip`.
        seed: of order and augmentation.
    """

    batch_sampler = None  # Lightning asks for it on everything that has a sampler.

    def __init__(
        self,
        data: ImageSet,
        batch_size: int,
        mean: list[float],
        std: list[float],
        *,
        train: bool,
        padding: int = 4,
        flip: bool = True,
        seed: int = 0,
    ) -> None:
        self.data, self.batch_size, self.train = data, batch_size, train
        self.mean, self.std = mean, std
        self.padding, self.flip, self.seed = padding, flip, seed
        self.epoch = self._next = 0
        if train and len(self) == 0:
            raise ValueError(
                f"batch_size {batch_size} x {rank_and_world()[1]} processes: more than the "
                f"{len(data)} images there are; choose a smaller one"
            )

    @property
    def sampler(self) -> MemoryLoader:
        """Itself: where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and augmentation come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        rank, world = rank_and_world()
        if self.train:
            return len(self.data) // (self.batch_size * world)
        share = len(range(rank, len(self.data), world))
        return -(-share // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rank, world = rank_and_world()
        order = torch.arange(len(self.data))
        if self.train:
            order = torch.randperm(len(self.data), generator=generator(self.seed, self.epoch))
        mine = order[rank::world]
        start, self._next = self._next % max(1, len(self)), 0
        for batch in range(start, len(self)):
            self._next = batch + 1
            index = mine[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield self._images(index, batch, rank), self.data.labels[index]
        self._next = 0

    def _images(self, index: Tensor, batch: int, rank: int) -> Tensor:
        images = self.data.images[index]
        if self.train and (self.padding or self.flip):
            draws = generator(self.seed, self.epoch, batch, rank)
            images = crop_flip(images, self.padding, self.flip, draws)
        return normalize(images, self.mean, self.std)

    def state_dict(self) -> dict[str, int]:
        """How many batches of the epoch were given out."""
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next iteration after that many batches."""
        self._next = state["next"]
