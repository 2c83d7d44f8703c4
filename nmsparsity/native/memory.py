"""Which tensors the native kernel can walk."""

from __future__ import annotations

import torch
from torch import Tensor

from nmsparsity.native.library import available

MAX_M = 64
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def supports(tensor: Tensor, m: int) -> bool:
    """Whether `project` and `Batch` can work on this weight; where not, use `Pattern.mask`."""
    return (
        1 <= m <= MAX_M
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.dtype in DTYPES
        and tensor.layout == torch.strided
        and _fills_its_memory(tensor)
        and available()
    )


def facts(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {tensor.dtype} {tensor.device} strides {tensor.stride()}"


def same_memory(tensor: Tensor, other: Tensor) -> bool:
    """Whether element after element lies in the same order, on the CPU."""
    return (
        tensor.layout == torch.strided
        and tensor.is_cpu
        and tensor.shape == other.shape
        and (
            tensor.stride() == other.stride()
            or all(
                mine == its or size == 1
                for mine, its, size in zip(
                    tensor.stride(), other.stride(), other.shape, strict=True
                )
            )
        )
    )


def _fills_its_memory(tensor: Tensor) -> bool:
    """Whether the elements lie without gaps or overlaps, in whatever order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return tensor.numel() == 0
        expected *= size
    return True
