"""How a layer lays out its weight, and how groups are found in it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """Which dimension of a weight is the input, and how many convolution groups share it.

    - ``Layout()``: ``[out, in, *kernel]``: `nn.Linear` and convolutions, grouped ones too (their
      ``in`` is already that of one group).
    - ``Layout(input_dim=0)``: ``[in, out, *kernel]``: Hugging Face ``Conv1D``, and transposed
      convolutions, whose ``in`` runs over all their ``conv_groups``.

    `fold` brings any of them to ``[outer, length, inner]``, where the groups of a pattern tile
    ``length`` and everything else is independent.

    >>> import torch
    >>> Layout().fold(torch.zeros(8, 4, 3, 3), "input").shape
    torch.Size([8, 4, 9])
    >>> Layout().fold(torch.zeros(8, 4, 3, 3), "kernel").shape
    torch.Size([8, 36, 1])
    """

    input_dim: int = 1
    conv_groups: int = 1

    def length(self, shape: tuple[int, ...], axis: str) -> int:
        """The number of weights along ``axis``: what groups tile.

        Raises:
            ValueError: for fewer than two dimensions.
        """
        if len(shape) < 2:
            raise ValueError(
                f"weight {list(shape)}: want two dimensions or more, [out, in, ...], to find "
                "groups in; a single row is weight[None]"
            )
        kernel = math.prod(shape[2:]) if axis == "kernel" else 1
        return shape[self.input_dim] // self._groups * kernel

    @property
    def _groups(self) -> int:
        return self.conv_groups if self.input_dim == 0 else 1

    def fold(self, weight: Tensor, axis: str) -> Tensor:
        """The weight as ``[outer, length, inner]``: a view where its memory allows one."""
        length = self.length(tuple(weight.shape), axis)
        if self.input_dim == 1:
            inner = math.prod(weight.shape[2:]) if axis == "input" else 1
            return weight.reshape(weight.shape[0], length, inner)
        split = self._split(tuple(weight.shape))
        if axis == "input":
            return weight.reshape(split[0], split[1], split[2] * split[3])
        rows = weight.reshape(split).transpose(1, 2)
        return rows.reshape(split[0] * split[2], split[1] * split[3], 1)

    def unfold(self, rows: Tensor, shape: tuple[int, ...], axis: str) -> Tensor:
        """Undo `fold`: ``[outer, length, inner]`` back to the weight's own shape."""
        if self.input_dim == 1 or axis == "input":
            return rows.reshape(shape)
        groups, inputs, outputs, kernel = self._split(shape)
        return rows.reshape(groups, outputs, inputs, kernel).transpose(1, 2).reshape(shape)

    def _split(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """``[in, out, *kernel]`` as conv groups, inputs and outputs of one group, kernel size."""
        groups = self._groups
        return groups, shape[0] // groups, shape[1], math.prod(shape[2:])


def input_first(module: nn.Module) -> bool:
    """Whether a layer holds its weight as ``[in, out]``: it is a ``Conv1D`` of transformers."""
    return any(
        kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")
        for kind in type(module).__mro__
    )
