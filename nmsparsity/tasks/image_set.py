"""ImageSet: small images, decoded once and kept in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageSet:
    """Images of one size as one uint8 tensor.

    Attributes:
        images: ``[count, height, width, channels]``, uint8: the channels last, as they are stored
            in files and as convolutions on a CPU like them.
        labels: ``[count]``, int64.
        classes: the names of the classes, in the order of the labels.

    >>> ImageSet(torch.zeros(2, 4, 4, 1, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    ImageSet(2 images of 4x4x1, 2 classes)

    Raises:
        ValueError: unless there is exactly one label per uint8 image, each a known class.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dim() != 4 or self.images.dtype != torch.uint8:
            raise ValueError(
                "images: want uint8 [count, height, width, channels], got "
                f"{self.images.dtype} {list(self.images.shape)}"
            )
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels: want one for each of {len(self.images)} images, got "
                f"{list(self.labels.shape)}"
            )
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(
            self.classes
        ):
            raise ValueError(
                f"labels: want 0 to {len(self.classes) - 1} ({len(self.classes)} classes), got "
                f"{int(self.labels.min())} to {int(self.labels.max())}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        size = "x".join(map(str, self.images.shape[1:]))
        return f"ImageSet({len(self)} images of {size}, {len(self.classes)} classes)"

    def split(self, held_out: int, seed: int = 0) -> tuple[ImageSet, ImageSet]:
        """The set without ``held_out`` random images, and those: for choosing hyperparameters."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self._take(order[held_out:]), self._take(order[:held_out])

    def _take(self, index: Tensor) -> ImageSet:
        return ImageSet(self.images[index], self.labels[index], self.classes)

    def moments(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, on the scale 0 to 1.

        From 10,000 images at most: enough for three digits.
        """
        some = self.images[:: max(1, len(self) // 10_000)].float() / 255
        std, mean = torch.std_mean(some, dim=(0, 1, 2))
        return mean.tolist(), std.clamp_min(1e-6).tolist()
