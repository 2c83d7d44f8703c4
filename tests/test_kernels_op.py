"""The operator that compilers see agrees with the kernel, and its fake with the operator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from nmsparsity.kernels import KERNELS, Problem
from nmsparsity.packed.weight import PackedWeight
from nmsparsity.pattern import Pattern

PROBLEMS = {
    "linear": (Problem("linear", (6, 8), Pattern(2, 4), torch.float32), (2, 3, 8)),
    "half": (Problem("linear", (6, 8), Pattern(2, 4), torch.bfloat16), (3, 8)),
    "conv2d": (Problem("conv2d", (6, 8, 3, 3), Pattern(2, 4), torch.float32, (2, 2)), (2, 8, 7, 7)),
}


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("epilogue", [False, True])
@pytest.mark.parametrize("kind", PROBLEMS)
def test_opcheck(kind: str, epilogue: bool, form: torch.memory_format) -> None:
    problem, shape = PROBLEMS[kind]
    if form is torch.channels_last and kind != "conv2d":
        form = torch.contiguous_format
    weight = torch.randn(problem.shape).to(problem.dtype)
    weight = weight * problem.pattern.mask(weight.abs())
    packed = PackedWeight.pack(weight, problem.pattern)
    tiles = KERNELS["reference"].tile(problem, packed)
    x = torch.randn(shape).to(problem.dtype).contiguous(memory_format=form)
    bias: Tensor | None = torch.randn(6).to(problem.dtype) if epilogue else None
    plain = KERNELS["reference"].run(problem, tiles, x, bias)
    residual = torch.randn_like(plain) if epilogue else None
    activation = "gelu" if epilogue else "none"
    args = (x, list(tiles), bias, residual, problem.to_string(), "reference", activation)
    torch.library.opcheck(torch.ops.nmsparsity.apply.default, args)
    expected = KERNELS["reference"].run(problem, tiles, x, bias, activation, residual)
    got = torch.ops.nmsparsity.apply(*args)
    assert_close(got, expected, rtol=0, atol=0)
    assert got.stride() == expected.stride()
