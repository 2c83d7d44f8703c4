"""Augmentation of small images, a whole batch at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def crop_flip(
    images: Tensor, padding: int, flip: bool, generator: torch.Generator | None = None
) -> Tensor:
    """A random crop of every zero-padded image, half of them mirrored; a new tensor.

    Args:
        images: ``[batch, height, width, channels]``.
        padding: pixels added at each border before the crop; 0 does not crop.
        flip: mirror every image left to right with probability 1/2.
        generator: makes it repeatable.

    >>> grey = torch.arange(4).reshape(1, 2, 2, 1)
    >>> torch.equal(crop_flip(grey, padding=0, flip=False), grey)
    True
    """
    batch, height, width, _ = images.shape
    device = images.device
    draws = torch.randint(0, 2 * padding + 1, (2, batch, 1), generator=generator).to(device)
    rows = draws[0] + torch.arange(height, device=device)
    columns = draws[1] + torch.arange(width, device=device)
    if flip:
        mirrored = torch.randint(0, 2, (batch, 1), generator=generator).to(device).bool()
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = functional.pad(images, (0, 0, padding, padding, padding, padding))
    which = torch.arange(batch, device=device)[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]]


def normalize(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """uint8 ``[batch, height, width, channels]`` as float ``[batch, channels, height, width]``.

    Each channel is shifted and scaled from its moments on the scale 0 to 1. The result is a view
    in channels-last memory.

    >>> white = torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)
    >>> round(normalize(white, [0.5], [0.25]).item(), 4)
    2.0
    """
    scale = 1 / (255 * torch.tensor(std, device=images.device))
    shift = -torch.tensor(mean, device=images.device) / torch.tensor(std, device=images.device)
    return torch.addcmul(shift, images.float(), scale).permute(0, 3, 1, 2)
