"""What is fixed about one packed layer: everything a kernel must know but the numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from nmsparsity.layout import Layout
from nmsparsity.packed.groups import check_shape
from nmsparsity.packed.weight import DTYPES
from nmsparsity.pattern import Pattern

Kind = Literal["linear", "conv2d"]
Pair = tuple[int, int]

_DIMENSIONS = {"linear": 2, "conv2d": 4}


@dataclass(frozen=True)
class Problem:
    """One multiplication by a packed weight, without its numbers; hashable, and a text.

    Two layers with equal problems can share a measurement, so the name does not count.

    >>> problem = Problem("linear", (8, 16), Pattern(2, 4), torch.float32, name="fc")
    >>> problem.output_shape((3, 5, 16))
    (3, 5, 8)
    >>> Problem.from_string(problem.to_string()) == problem
    True

    Args:
        kind: ``"linear"`` or ``"conv2d"``; a one-dimensional convolution has height 1.
        shape: of the dense weight, ``[out, in]`` or ``[out, in / groups, height, width]``.
        pattern: N, M and the axis.
        dtype: of weight, bias, input and output.
        stride, padding, dilation, groups: of a convolution, as in `nn.Conv2d`.
        device: where the weight is and the product is made: ``"cpu"``, ``"cuda:0"``.
        name: the layer's name, for errors.

    Raises:
        ValueError: naming the layer, for a kind, shape, dtype or number that makes no sense.
    """

    kind: Kind
    shape: tuple[int, ...]
    pattern: Pattern
    dtype: torch.dtype
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    device: str = "cpu"
    name: str = field(default="layer", compare=False)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"layer {self.name!r}: kind {self.kind!r}: want 'linear' or 'conv2d'")
        if len(self.shape) != _DIMENSIONS[self.kind]:
            raise ValueError(
                f"layer {self.name!r}: a {self.kind} weight of shape {list(self.shape)}, want "
                f"{_DIMENSIONS[self.kind]} dimensions, [out, in, *kernel]"
            )
        check_shape(self.name, self.shape, Layout())
        if self.dtype not in DTYPES:
            known = ", ".join(map(str, DTYPES))
            raise ValueError(f"layer {self.name!r}: dtype {self.dtype}: kernels take {known}")
        _check_geometry(self)

    @property
    def inputs(self) -> int:
        """The input features, or channels over all convolution groups."""
        return self.shape[1] * self.groups

    @property
    def outputs(self) -> int:
        """The output features or channels."""
        return self.shape[0]

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the result for an input ``[..., in]``, or ``[N, in, height, width]``.

        Raises:
            ValueError: naming the layer, for an input that does not fit its weight.
        """
        channel = -1 if self.kind == "linear" else 1
        if len(shape) < 1 or (self.kind == "conv2d" and len(shape) != 4):
            raise ValueError(self._misfit(shape))
        if shape[channel] != self.inputs:
            raise ValueError(self._misfit(shape))
        if self.kind == "linear":
            return (*shape[:-1], self.outputs)
        height, width = (self._extent(shape[2 + side], side) for side in (0, 1))
        if height < 1 or width < 1:
            raise ValueError(f"{self._misfit(shape)}: it is smaller than the kernel")
        return (shape[0], self.outputs, height, width)

    def _extent(self, size: int, side: int) -> int:
        reach = self.dilation[side] * (self.shape[2 + side] - 1) + 1
        return (size + 2 * self.padding[side] - reach) // self.stride[side] + 1

    def _misfit(self, shape: Sequence[int]) -> str:
        form = "[..., {}]" if self.kind == "linear" else "[N, {}, height, width]"
        return (
            f"layer {self.name!r}: an input of shape {list(shape)}, want "
            f"{form.format(self.inputs)} for its {self.kind} weight {list(self.shape)}"
        )

    def to_string(self) -> str:
        """A short JSON text with everything, the name too."""
        said = asdict(self) | {"dtype": str(self.dtype).removeprefix("torch.")}
        return json.dumps(said, separators=(",", ":"))

    @staticmethod
    @lru_cache(maxsize=4096)
    def from_string(text: str) -> Problem:
        """Undo `to_string`."""
        said = json.loads(text)
        said["pattern"] = Pattern(**said["pattern"])
        said["dtype"] = getattr(torch, said["dtype"])
        for key in ("shape", "stride", "padding", "dilation"):
            said[key] = tuple(said[key])
        return Problem(**said)


def memory_format(x: Tensor) -> torch.memory_format:
    """The format of an input, which the result keeps: ``channels_last`` where only that fits."""
    if x.dim() != 4 or x.is_contiguous():
        return torch.contiguous_format
    last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _check_geometry(problem: Problem) -> None:
    for name, least in (("stride", 1), ("padding", 0), ("dilation", 1)):
        pair = getattr(problem, name)
        if len(pair) != 2 or any(type(size) is not int or size < least for size in pair):
            raise ValueError(
                f"layer {problem.name!r}: {name} {pair}: want two whole numbers of at least {least}"
            )
    if problem.groups < 1 or problem.outputs % problem.groups:
        raise ValueError(
            f"layer {problem.name!r}: {problem.outputs} outputs do not divide into "
            f"{problem.groups} convolution groups"
        )
