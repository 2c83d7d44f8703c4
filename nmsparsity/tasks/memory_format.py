"""The memory format that a model of images is trained in."""

from __future__ import annotations

import torch
from torch import nn


def memory_format(network: nn.Module, channels_last: bool) -> tuple[torch.memory_format, str]:
    """``torch.channels_last`` if asked for and safe to train in, else contiguous; and why not.

    oneDNN's gradient of a 1x1 convolution with a stride writes past its memory where channels come
    last and are fewer than a vector has, 16 with AVX-512: a crash, or other tensors' memory changed
    (uxlfoundation/oneDNN issue 6035; in torch 2.14.1, oneDNN 3.12).

    >>> memory_format(nn.Conv2d(16, 16, 1, stride=2), True)
    (torch.channels_last, '')
    """
    if not channels_last:
        return torch.contiguous_format, ""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d) and _is_unsafe(layer):
            return torch.contiguous_format, (
                f"channels_last is left out: {name or 'the model'} is a 1x1 convolution with a "
                f"stride over {layer.in_channels} < 16 channels, whose gradient in that format "
                "overwrites memory (uxlfoundation/oneDNN issue 6035)"
            )
    return torch.channels_last, ""


def _is_unsafe(layer: nn.Conv2d) -> bool:
    strided = layer.kernel_size == (1, 1) and layer.stride != (1, 1)
    return strided and layer.in_channels < 16
