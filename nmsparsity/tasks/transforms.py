"""Transforms of large photos: ImageNet's crops, flips and "PCA lighting"."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]


class Lighting(nn.Module):
    """Shift all pixels along the principal colours of ImageNet by random amounts; a new tensor.

    Section 4.1 of the AlexNet paper (Krizhevsky et al., NIPS 2012): each of the three principal
    components times its eigenvalue times a normal number of deviation ``strength``. Eigenvectors
    and values are those of ImageNet's colours on the scale 0 to 1.

    Args:
        strength: deviation of the random factors, 0.1 in the paper.
    """

    def __init__(self, strength: float = 0.1) -> None:
        super().__init__()
        self.strength = strength
        self.values = torch.tensor([0.2175, 0.0188, 0.0045])
        self.vectors = torch.tensor(
            [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
        )

    def forward(self, image: Tensor) -> Tensor:
        """``[3, height, width]`` on the scale 0 to 1, and so returned, not clipped."""
        factors = torch.randn(3) * self.strength
        return image + (self.vectors @ (factors * self.values))[:, None, None]


def training_transform(size: int, lighting: float) -> v2.Compose:
    """A random crop of 8 to 100 % of the area resized to ``size``, a flip, lighting, normalised."""
    steps: list[nn.Module] = [
        v2.RandomResizedCrop(size, antialias=True),
        v2.RandomHorizontalFlip(),
        *_to_float(),
    ]
    if lighting:
        steps.append(Lighting(lighting))
    return v2.Compose([*steps, v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])


def evaluation_transform(size: int, resize: int) -> v2.Compose:
    """The shorter side resized to ``resize``, the centre cropped to ``size``, normalised."""
    return v2.Compose(
        [
            v2.Resize(resize, antialias=True),
            v2.CenterCrop(size),
            *_to_float(),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def _to_float() -> list[nn.Module]:
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
