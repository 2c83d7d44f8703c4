"""The native kernels: fp32 on any CPU, C++ in csrc/, in torch's own threads."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any

import torch
from torch import Tensor

from nmsparsity import native
from nmsparsity.kernels.base import Kernel, kernel
from nmsparsity.kernels.plan import Planner
from nmsparsity.kernels.problem import Problem, memory_format
from nmsparsity.kernels.tiles import make_tiles, read_tiles, windows_of
from nmsparsity.native.library import isa, lanes, multiply
from nmsparsity.native.product import Product
from nmsparsity.packed.weight import PackedWeight

_ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")
_POINTERS = Struct("6P")  # those that Product begins with
_MOST = 64  # input shapes to keep: text has many lengths


@kernel
class NativeKernel(Kernel):
    """Multiplies by what is kept and by nothing else: AVX-512, AVX2 or portable C++.

    Results are the same to the last bit for every number of threads and every plan. An infinite
    or NaN activation that only meets pruned weights may leave no trace, where dense computing
    makes NaN of 0 times infinity.

    >>> from nmsparsity.pattern import Pattern
    >>> weight = torch.tensor([[0.0, 1.0, 2.0, 0.0]])
    >>> problem = Problem("linear", (1, 4), Pattern(2, 4), torch.float32)
    >>> kernel = NativeKernel()
    >>> if kernel.refuses(problem) is None:
    ...     tiles = kernel.tile(problem, PackedWeight.pack(weight, problem.pattern))
    ...     y = kernel.run(problem, tiles, torch.tensor([[1.0, 10.0, 100.0, 1000.0]]))
    ...     assert y.tolist() == [[210.0]]
    """

    name = "native"
    priority = 10

    def __init__(self) -> None:
        self._planner = Planner()

    def refuses(self, problem: Problem) -> str | None:
        """Why not: no library, another device, or another dtype than fp32."""
        if problem.device != "cpu":
            return f"it runs on the CPU, the weight is on {problem.device}"
        if not native.available():
            return "nmsparsity was installed without its native library"
        if problem.dtype != torch.float32:
            return f"it computes in torch.float32, the weight is {problem.dtype}"
        return None

    def tile(self, problem: Problem, weight: PackedWeight) -> tuple[Tensor, ...]:
        """Values and positions, see `nmsparsity.kernels.tiles`."""
        return make_tiles(problem, weight.unpack(), lanes())

    def untile(self, problem: Problem, tiles: Sequence[Tensor]) -> PackedWeight:
        weight = read_tiles(problem, tuple(tile.cpu() for tile in tiles))
        return PackedWeight.pack(weight, problem.pattern, name=problem.name)

    def run(
        self,
        problem: Problem,
        tiles: Sequence[Tensor],
        x: Tensor,
        bias: Tensor | None = None,
        activation: str = "none",
        residual: Tensor | None = None,
    ) -> Tensor:
        return _Calls(problem, self._planner)(tiles, x, bias, activation, residual)

    def prepare(self, problem: Problem) -> Callable[..., Tensor]:
        """`run` that keeps what it has worked out for an input shape."""
        return _Calls(problem, self._planner)


@dataclass(frozen=True)
class _Ready:
    """What is fixed about the calls with one input shape: all but where the numbers are."""

    product: Product
    reference: Any
    shape: tuple[int, ...]
    form: torch.memory_format


class _Calls:
    """The calls of one layer."""

    def __init__(self, problem: Problem, planner: Planner) -> None:
        self._problem, self._planner = problem, planner
        self._known: dict[object, _Ready] = {}

    def __call__(
        self,
        tiles: Sequence[Tensor],
        x: Tensor,
        bias: Tensor | None = None,
        activation: str = "none",
        residual: Tensor | None = None,
    ) -> Tensor:
        values, places = tiles
        if not (x.is_cpu and values.is_cpu and places.is_cpu):
            raise ValueError(
                f"layer {self._problem.name!r}: the native kernel runs on the CPU, the input is on "
                f"{x.device} and the weight on {values.device}; decompress the model to move it"
            )
        plain, alone = x.is_contiguous(), residual is None
        key = (x.shape, plain, activation, alone, torch.get_num_threads(), isa())
        # Taken out while it is in use: another thread finds nothing and makes its own.
        ready = self._known.pop(key, None) or self._ready(tiles, x, activation)
        y = torch.empty(ready.shape, memory_format=ready.form, dtype=torch.float32)
        if not y.numel():
            return y
        _POINTERS.pack_into(
            ready.product,
            0,
            values.data_ptr(),
            places.data_ptr(),
            x.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            0 if residual is None else residual.data_ptr(),
            y.data_ptr(),
        )
        if not ready.product.vectors:
            last = self._problem.kind == "linear" or not plain
            plan_key = (self._problem, ready.product.slots, last, activation, alone)
            self._planner.plan(plan_key, ready.product, values.shape[2]).set(ready.product)
        multiply(ready.reference)
        self._known[key] = ready
        return y

    def _ready(self, tiles: Sequence[Tensor], x: Tensor, activation: str) -> _Ready:
        problem, form = self._problem, memory_format(x)
        if tiles[0].shape[2] != lanes():
            raise ValueError(
                f"layer {problem.name!r}: its weight is laid out for {tiles[0].shape[2]} lanes, "
                f"instruction set {isa()!r} has {lanes()}; load its state_dict here"
            )
        shape = problem.output_shape(x.shape)
        last = problem.kind == "linear" or form == torch.channels_last
        product = _product(problem, tiles, x.shape, shape, last)
        product.activation = _ACTIVATIONS.index(activation)
        if len(self._known) >= _MOST:
            self._known.clear()
        return _Ready(product, ctypes.byref(product), shape, form)


def _product(
    problem: Problem, tiles: Sequence[Tensor], x: Sequence[int], y: Sequence[int], last: bool
) -> Product:
    """The problem as a convolution: a linear layer has one image, of one row of pixels."""
    _, slots, _ = tiles[0].shape
    linear = problem.kind == "linear"
    pixels = 1
    for size in x[:-1] if linear else ():
        pixels *= size
    images, height, width = (1, 1, pixels) if linear else (x[0], x[2], x[3])
    out_height, out_width = (1, pixels) if linear else (y[2], y[3])
    inputs, outputs = problem.inputs, problem.outputs
    size, out_size = height * width, out_height * out_width
    kernel_size = (1, 1) if linear else problem.shape[2:]
    return Product(
        values=tiles[0].data_ptr(),
        places=tiles[1].data_ptr(),
        groups=problem.groups,
        rows=outputs // problem.groups,
        channels=problem.shape[1],
        images=images,
        height=height,
        width=width,
        out_height=out_height,
        out_width=out_width,
        x_image=size * inputs,
        x_channel=1 if last else size,
        x_pixel=inputs if last else 1,
        y_image=out_size * outputs,
        y_channel=1 if last else out_size,
        y_pixel=outputs if last else 1,
        kernel_height=kernel_size[0],
        kernel_width=kernel_size[1],
        stride_y=problem.stride[0],
        stride_x=problem.stride[1],
        pad_y=problem.padding[0],
        pad_x=problem.padding[1],
        dilate_y=problem.dilation[0],
        dilate_x=problem.dilation[1],
        windows=windows_of(tiles),
        slots=slots,
        threads=torch.get_num_threads(),
    )
