"""Batches: which images come when, on which process; repeatable and resumable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import distributed


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) outside distributed training."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def draw_seed(*key: int) -> int:
    """A 63-bit seed that depends on all numbers of the key and on nothing else."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(*key: int) -> torch.Generator:
    """A random generator with the seed of this key."""
    return torch.Generator().manual_seed(draw_seed(*key))


class Batches(ABC):
    """Iterates over batches, such as ``(images, labels)``: this process's share of an epoch.

    When training, the order depends on ``(seed, epoch)`` alone, and whatever a subclass draws for
    augmentation must depend on nothing else either: then an epoch that was stopped in the middle
    goes on as if nothing had happened (Lightning keeps `state_dict` in its checkpoints). All
    processes get the same number of full batches. When evaluating, every image comes exactly once
    over all processes: none is repeated to make shares equal, so some have a batch less. (That is
    no trouble: under DDP only the first forward without gradients talks to other processes.)

    Args:
        count: number of images.
        batch_size: images per batch and process.
        train: shuffle, and drop the last short batch.
        seed: of order and augmentation.

    Raises:
        ValueError: if training has not one full batch, or evaluation not one image a process.
    """

    batch_sampler = None  # Lightning asks for it on everything that has a sampler.

    def __init__(self, count: int, batch_size: int, *, train: bool, seed: int = 0) -> None:
        self.count, self.batch_size, self.train, self.seed = count, batch_size, train, seed
        self.epoch = self._next = 0
        world = rank_and_world()[1]
        if train and len(self) == 0:
            raise ValueError(
                f"batch_size {batch_size} on each of {world} processes: more than "
                f"the {count} images there are; choose a smaller one"
            )
        # The same answer on all processes, else those with a share would wait for the others.
        if not train and count < world:
            raise ValueError(
                f"{count} images to evaluate on {world} processes: want one for each at least; "
                "take more images or fewer processes"
            )

    @property
    def sampler(self) -> Batches:
        """Itself: where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and augmentation come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        rank, world = rank_and_world()
        if self.train:
            return self.count // (self.batch_size * world)
        return -(-len(range(rank, self.count, world)) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        start, self._next = self._next % len(self), 0
        for number, batch in enumerate(self.load(self.plan()[start:], start), start + 1):
            self._next = number
            yield batch
        self._next = 0

    def plan(self) -> list[Any]:
        """What is in each batch of the epoch: here, image numbers."""
        rank, world = rank_and_world()
        order = torch.arange(self.count)
        if self.train:
            order = torch.randperm(self.count, generator=generator(self.seed, self.epoch))
        return list(torch.split(order[rank::world], self.batch_size))[: len(self)]

    @abstractmethod
    def load(self, plan: list[Any], start: int) -> Iterator[Any]:
        """The batches of this plan; the first is batch ``start`` of the epoch."""

    def state_dict(self) -> dict[str, int]:
        """How many batches of the epoch were given out."""
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next iteration after that many batches."""
        self._next = state["next"]
