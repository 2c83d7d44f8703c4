"""MemoryLoader: batches of an ImageSet, augmented as whole tensors."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from nmsparsity.tasks.augment import crop_flip, normalize
from nmsparsity.tasks.batches import Batches, generator, rank_and_world
from nmsparsity.tasks.image_set import ImageSet


class MemoryLoader(Batches):
    """Batches of images that are in memory: no worker processes, a few milliseconds each.

    Args:
        data: the images.
        batch_size: images per batch and process.
        mean, std: moments of each channel for `normalize`.
        train: shuffle and augment.
        padding, flip: for `crop_flip`.
        seed: of order and augmentation.

    >>> import torch
    >>> data = ImageSet(torch.zeros(5, 8, 8, 1, dtype=torch.uint8), torch.zeros(5).long(), ("a",))
    >>> [len(labels) for _, labels in MemoryLoader(data, 2, [0.0], [1.0], train=False)]
    [2, 2, 1]
    """

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
        super().__init__(len(data), batch_size, train=train, seed=seed)
        self.data, self.mean, self.std = data, mean, std
        self.padding, self.flip = padding, flip

    def load(self, plan: list[Tensor], start: int) -> Iterator[tuple[Tensor, Tensor]]:
        rank, _ = rank_and_world()
        for number, index in enumerate(plan, start):
            images = self.data.images[index]
            if self.train and (self.padding or self.flip):
                draws = generator(self.seed, self.epoch, number, rank)
                images = crop_flip(images, self.padding, self.flip, draws)
            yield normalize(images, self.mean, self.std), self.data.labels[index]
