"""The layers that are measured, of networks people use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from nmsparsity.kernels import Problem
from nmsparsity.pattern import Pattern


@dataclass(frozen=True)
class Shape:
    """A layer and its input: pixels (or tokens), channels in and out, kernel size."""

    kind: str
    inputs: int
    outputs: int
    size: int  # tokens, or the side of the map

    @property
    def name(self) -> str:
        at = f"{self.size} tokens" if self.kind == "linear" else f"{self.size}x{self.size}"
        return f"{self.kind} {self.inputs} to {self.outputs}, {at}"

    @property
    def group(self) -> str:
        if self.kind != "linear":
            return self.kind
        return {1: "linear, 1 token, cold", 16: "linear, 16 tokens"}.get(
            self.size, "linear, 128-512 tokens"
        )

    @property
    def kernel(self) -> int:
        return 3 if self.kind == "conv 3x3" else 1

    @property
    def work(self) -> int:
        """Floating point operations of the dense layer."""
        pixels = self.size if self.kind == "linear" else self.size**2
        return 2 * self.inputs * self.outputs * self.kernel**2 * pixels

    def input(self) -> Tensor:
        if self.kind == "linear":
            return torch.randn(self.size, self.inputs)
        return torch.randn(1, self.inputs, self.size, self.size)

    def weight(self) -> Tensor:
        shape = (self.outputs, self.inputs)
        scale = (self.inputs * self.kernel**2) ** -0.5
        return scale * torch.randn(shape if self.kind == "linear" else (*shape, *2 * [self.kernel]))

    def problem(self, pattern: Pattern) -> Problem:
        """What a kernel is told of the layer."""
        if self.kind == "linear":
            return Problem("linear", (self.outputs, self.inputs), pattern, torch.float32)
        shape = (self.outputs, self.inputs, self.kernel, self.kernel)
        padding = (self.kernel // 2,) * 2
        return Problem("conv2d", shape, pattern, torch.float32, padding=padding)


LINEARS = ((512, 512), (512, 2048), (2048, 512), (768, 3072), (4096, 4096))
SHAPES = [
    *(Shape("linear", i, o, t) for t in (1, 16, 128, 512) for i, o in LINEARS),
    *(Shape("conv 1x1", *s) for s in ((64, 256, 56), (256, 64, 56), (512, 128, 28))),
    *(Shape("conv 1x1", *s) for s in ((1024, 256, 14), (512, 2048, 7))),
    *(Shape("conv 3x3", *s) for s in ((64, 64, 56), (128, 128, 28), (256, 256, 14), (512, 512, 7))),
]


def dense(weight: Tensor, x: Tensor) -> Tensor:
    """The layer by torch."""
    if weight.dim() == 2:
        return functional.linear(x, weight)
    return functional.conv2d(x, weight, padding=weight.shape[2] // 2)


def last(x: Tensor) -> Tensor:
    """In channels-last memory."""
    return x.contiguous(memory_format=torch.channels_last)


def module(weight: Tensor) -> nn.Module:
    """The layer as torch has it."""
    if weight.dim() == 2:
        layer: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    else:
        shape = (weight.shape[1], weight.shape[0], weight.shape[2])
        layer = nn.Conv2d(*shape, padding=weight.shape[2] // 2, bias=False)
    layer.load_state_dict({"weight": weight})
    return layer.eval()
