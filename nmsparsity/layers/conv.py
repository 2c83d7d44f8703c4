"""Convolutions with a packed weight."""

from __future__ import annotations

from torch import Tensor

from nmsparsity.layers.packed import PackedLayer


class PackedConv2d(PackedLayer):
    """`nn.Conv2d` with a packed weight.

    >>> import torch
    >>> from torch import nn
    >>> from nmsparsity.layers import pack
    >>> from nmsparsity.pattern import Pattern
    >>> plain = nn.Conv2d(4, 8, 3, padding=1)
    >>> _ = plain.weight.data[:, 1::2].zero_()
    >>> packed = pack(plain, Pattern(2, 4), "conv")
    >>> packed(torch.randn(1, 4, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    def forward(
        self, input: Tensor, residual: Tensor | None = None, activation: str = "none"
    ) -> Tensor:
        """``[N, in, height, width]``, or without N, to the same with ``out`` channels."""
        if input.dim() == 3:
            return self.lifted(input, residual, activation, 0)
        return self.multiply(input, residual, activation)


class PackedConv1d(PackedLayer):
    """`nn.Conv1d` with a packed weight, run as a two-dimensional convolution of height 1."""

    def forward(
        self, input: Tensor, residual: Tensor | None = None, activation: str = "none"
    ) -> Tensor:
        """``[N, in, width]``, or without N, to the same with ``out`` channels."""
        dims = (0, 2) if input.dim() == 2 else (2,)
        return self.lifted(input, residual, activation, *dims)
