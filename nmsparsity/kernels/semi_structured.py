"""The 2:4 kernels of NVIDIA GPUs, through torch's semi-structured sparse tensors.

A weight with at most 2 of every M, where 4 divides M, has at most 2 of every 4: 1:4, 2:8, 1:16 and
their like run as 2:4, at the speed of 2:4. Their speed was not measured by this project, which has
no GPU: packing and refusals are tested on a CPU, products with stand-ins for torch's operators.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from nmsparsity.kernels.base import Kernel, kernel
from nmsparsity.kernels.epilogue import finish
from nmsparsity.kernels.problem import Problem, memory_format
from nmsparsity.packed.weight import PackedWeight

Rule = tuple[int, int, int]
"""Of a dtype: rows and columns of the weight, and tokens, must be multiples of these."""


class SemiStructured(Kernel):
    """What the two libraries have in common: linear layers and 1x1 convolutions as products.

    Attributes:
        rules: by dtype; torch fills up the tokens itself.
    """

    rules: ClassVar[dict[torch.dtype, Rule]]

    def refuses(self, problem: Problem) -> str | None:
        """Why not: the machine first, then pattern, layer, dtype and shape."""
        return self.lacks(problem.device) or self.unfit(problem)

    @abstractmethod
    def lacks(self, device: str) -> str | None:
        """What the device lacks; None when it can run this kernel."""

    def unfit(self, problem: Problem) -> str | None:
        """Why this layer has no such form on any machine; None when it has.

        >>> from nmsparsity.pattern import Pattern
        >>> CutlassKernel().unfit(Problem("linear", (64, 64), Pattern(1, 16), torch.float16))
        >>> CutlassKernel().unfit(Problem("linear", (64, 64), Pattern(4, 8), torch.float16))
        '4:8 is not 2:4: GPUs multiply at most 2 of every 4'
        """
        return _why_not_a_product(problem) or self._why_not_two_of_four(problem)

    def _why_not_two_of_four(self, problem: Problem) -> str | None:
        pattern, dtype = problem.pattern, problem.dtype
        if dtype not in self.rules:
            known = ", ".join(map(str, self.rules))
            return f"it computes in {known}, the weight is {dtype}"
        kept, group = (1, 2) if dtype == torch.float32 else (2, 4)
        if pattern.n > kept or pattern.m % group:
            also = " (in fp32 1 of every 2)" if dtype == torch.float32 else ""
            return f"{pattern} is not {kept}:{group}: GPUs multiply at most 2 of every 4{also}"
        rows, columns, _ = self.rules[dtype]
        out, inputs = problem.shape[:2]
        if out % rows or inputs % columns:
            return (
                f"a {dtype} weight must have a multiple of {rows} outputs and of {columns} inputs, "
                f"this one has {out} and {inputs}"
            )
        return None

    def run(
        self,
        problem: Problem,
        tiles: Sequence[Tensor],
        x: Tensor,
        bias: Tensor | None = None,
        activation: str = "none",
        residual: Tensor | None = None,
    ) -> Tensor:
        for what, tensor in (("input", x), ("weight", tiles[0])):
            if not tensor.is_cuda:
                raise ValueError(
                    f"layer {problem.name!r}: kernel {self.name!r} runs on a GPU, the {what} is on "
                    f"{tensor.device}; decompress the model to move it"
                )
        return finish(self.product(problem, tiles, x, bias), activation, residual)

    def product(
        self, problem: Problem, tiles: Sequence[Tensor], x: Tensor, bias: Tensor | None
    ) -> Tensor:
        """``x @ weight + bias``: pixels are tokens, channels last."""
        shape, form = problem.output_shape(x.shape), memory_format(x)
        tokens = x if problem.kind == "linear" else x.permute(0, 2, 3, 1)
        rows = tokens.reshape(-1, problem.inputs)
        if not rows.shape[0]:
            return x.new_empty(shape)
        result = functional.linear(rows, self.tensor(problem, tiles), bias)
        if problem.kind == "linear":
            return result.reshape(shape)
        pixels = result.reshape(shape[0], shape[2], shape[3], shape[1])
        return pixels.permute(0, 3, 1, 2).contiguous(memory_format=form)

    @abstractmethod
    def tensor(self, problem: Problem, tiles: Sequence[Tensor]) -> Tensor:
        """torch's semi-structured tensor of the tiles, without a copy."""


@kernel
class CutlassKernel(SemiStructured):
    """CUTLASS, in torch itself: GPUs of compute capability 8.x (Ampere, Ada).

    Tiles are the kept values ``[out, in / 2]`` and CUTLASS' reordered positions, made on the CPU.
    fp32 is multiplied in TF32, which keeps 10 bits of each factor: only where
    ``torch.set_float32_matmul_precision`` allows it.
    """

    name = "cutlass"
    priority = 5
    rules: ClassVar[dict[torch.dtype, Rule]] = {
        torch.float16: (32, 64, 8),
        torch.bfloat16: (32, 64, 8),
        torch.float32: (32, 32, 4),
    }

    def lacks(self, device: str) -> str | None:
        reason = _why_no_gpu(device)
        if reason is not None:
            return reason
        major, minor = torch.cuda.get_device_capability(device)
        if major != 8:
            return (
                f"torch's CUTLASS kernels want compute capability 8.x, {device} has {major}.{minor}"
            )
        return None

    def unfit(self, problem: Problem) -> str | None:
        if problem.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest":
            return (
                "it multiplies fp32 in TF32, which keeps 10 bits: allow that with "
                "torch.set_float32_matmul_precision('high'), or use fp16 or bf16"
            )
        return super().unfit(problem)

    def tile(self, problem: Problem, weight: PackedWeight) -> tuple[Tensor, ...]:
        from torch.sparse._semi_structured_conversions import (
            sparse_semi_structured_from_dense_cutlass,
        )

        dense = weight.unpack().reshape(problem.outputs, -1)
        values, positions = sparse_semi_structured_from_dense_cutlass(dense)  # type: ignore[no-untyped-call]
        return values.contiguous(), positions.contiguous()

    def untile(self, problem: Problem, tiles: Sequence[Tensor]) -> PackedWeight:
        from torch.sparse._semi_structured_conversions import (
            sparse_semi_structured_to_dense_cutlass,
        )

        values, positions = (tile.cpu() for tile in tiles)
        # As bits: torch moves fp32 as pairs of fp16, and those that look like NaN change.
        bits = sparse_semi_structured_to_dense_cutlass(values.view(torch.int16), positions)  # type: ignore[no-untyped-call]
        dense = bits.view(problem.dtype).reshape(problem.shape)
        return PackedWeight.pack(dense, problem.pattern, name=problem.name)

    def tensor(self, problem: Problem, tiles: Sequence[Tensor]) -> Tensor:
        from torch.sparse import SparseSemiStructuredTensorCUTLASS

        shape = torch.Size((problem.outputs, problem.inputs))
        return _made(SparseSemiStructuredTensorCUTLASS, shape, tiles[0], tiles[1])


@kernel
class CusparseltKernel(SemiStructured):
    """cuSPARSELt, where torch was built with it: compute capability 8.0 and newer, Hopper too.

    Its one tile is opaque and belongs to the GPU and the library that made it: it is made there,
    read back by a product with the unit matrix (exact, the weights are finite), and never saved.
    """

    name = "cusparselt"
    priority = 6
    rules: ClassVar[dict[torch.dtype, Rule]] = {
        torch.float16: (16, 16, 8),
        torch.bfloat16: (16, 16, 8),
    }

    def lacks(self, device: str) -> str | None:
        reason = _why_no_gpu(device)
        if reason is not None:
            return reason
        if not torch.backends.cusparselt.is_available():
            return "this torch was built without cuSPARSELt"
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            return f"sparse tensor cores want compute capability 8.0, {device} has {major}.{minor}"
        return None

    def tile(self, problem: Problem, weight: PackedWeight) -> tuple[Tensor, ...]:
        dense = weight.unpack().reshape(problem.outputs, -1).to(problem.device)
        return (torch._cslt_compress(dense),)

    def untile(self, problem: Problem, tiles: Sequence[Tensor]) -> PackedWeight:
        if not tiles[0].is_cuda:
            raise ValueError(
                f"layer {problem.name!r}: only the GPU that packed it can unpack a cuSPARSELt "
                f"weight, and it is on {tiles[0].device}; decompress the model to move it"
            )
        unit = torch.eye(problem.inputs, dtype=problem.dtype, device=tiles[0].device)
        dense = torch._cslt_sparse_mm(tiles[0], unit).cpu().reshape(problem.shape)
        return PackedWeight.pack(dense, problem.pattern, name=problem.name)

    def tensor(self, problem: Problem, tiles: Sequence[Tensor]) -> Tensor:
        from torch.sparse import SparseSemiStructuredTensorCUSPARSELT

        shape = torch.Size((problem.outputs, problem.inputs))
        return _made(SparseSemiStructuredTensorCUSPARSELT, shape, tiles[0], None)


def _made(
    kind: type[Tensor], shape: torch.Size, values: Tensor, positions: Tensor | None
) -> Tensor:
    """torch's tensor around its parts; it warns once that it is a prototype, which is known."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*SparseSemiStructuredTensor is in prototype")
        made: Tensor = kind(shape, values, positions, None, None, None)  # type: ignore[call-arg]
    return made


def _why_no_gpu(device: str) -> str | None:
    if torch.device(device).type != "cuda":
        return f"it runs on NVIDIA GPUs, the weight is on {device}"
    if torch.version.hip is not None:
        return "this torch is built for AMD GPUs, for which this kernel was not tried"
    return None


def _why_not_a_product(problem: Problem) -> str | None:
    if problem.pattern.axis != "input":
        return f"GPUs want groups along the inputs, these lie along axis {problem.pattern.axis!r}"
    if problem.kind == "linear":
        return None
    plain = ((1, 1), (0, 0), (1, 1), 1)
    geometry = (problem.stride, problem.padding, problem.dilation, problem.groups)
    if problem.shape[2:] != (1, 1) or geometry != plain:
        return "it runs linear layers and 1x1 convolutions without stride, padding and groups"
    return None
