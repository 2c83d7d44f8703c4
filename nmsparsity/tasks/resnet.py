"""SmallResNet: the ResNet family for small images (CIFAR, Fashion-MNIST)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


def he_init(model: nn.Module) -> nn.Module:
    """Draw every convolution from He's normal distribution with ``fan_out``, in place.

    The start of the paper's networks (arXiv 1502.01852 for the distribution); batch norms begin as
    the identity.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    return model


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, images: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(images)), inplace=True)
        out = self.bn2(self.conv2(out))
        return functional.relu(out + self.shortcut(images), inplace=True)


class SmallResNet(nn.Module):
    """A ResNet with a 3x3 stem: stage ``i`` has ``blocks[i]`` blocks of ``width * 2**i`` channels.

    Args:
        blocks: blocks of each stage; ``(1, 1, 1)`` is ResNet-8, ``(3, 3, 3)`` ResNet-20.
        width: channels of the first stage. Keep it a multiple of M, else layers stay dense.
        stem_stride: 2 halves the image first, four times cheaper.
        classes: how many to tell apart.
        in_channels: 3 for colour, 1 for grey images.

    >>> import torch
    >>> SmallResNet(width=8, classes=5)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        blocks: Sequence[int] = (1, 1, 1),
        width: int = 32,
        stem_stride: int = 1,
        classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stem_stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages, inputs = [], width
        for index, count in enumerate(blocks):
            outputs = width * 2**index
            strides = [1 if index == 0 else 2] + [1] * (count - 1)
            layers = []
            for stride in strides:
                layers.append(Block(inputs, outputs, stride))
                inputs = outputs
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(inputs, classes)
        he_init(self)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores ``[batch, classes]`` of images ``[batch, in_channels, height, width]``."""
        out = functional.relu(self.bn1(self.conv1(images)), inplace=True)
        out = self.stages(out)
        return self.fc(out.mean((2, 3)))  # type: ignore[no-any-return]
