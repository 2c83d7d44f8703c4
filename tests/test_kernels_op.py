"""The operator that compilers see agrees with the kernel, and its fake with the operator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from nmsparsity.kernels import KERNELS, Problem, apply
from nmsparsity.kernels.epilogue import ACTIVATIONS, finish
from nmsparsity.kernels.reference import multiply
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
    grown = [t.clone().requires_grad_() if isinstance(t, Tensor) else t for t in args]
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.nmsparsity.apply.default, grown, test_utils=utils)
    expected = KERNELS["reference"].run(problem, tiles, x, bias, activation, residual)
    got = apply(*args)
    assert_close(got, expected, rtol=0, atol=0)
    assert got.stride() == expected.stride()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["linear", "conv2d", "grouped", "one row"])
def test_gradients_are_those_of_the_dense_layer(kind: str, activation: str) -> None:
    grouped = Problem(
        "conv2d", (6, 4, 3, 3), Pattern(2, 4), torch.float32, (1, 2), (1, 1), (2, 1), 2
    )
    one = PROBLEMS["linear"][0]
    known = {**PROBLEMS, "grouped": (grouped, (2, 8, 7, 7)), "one row": (one, (8,))}
    problem, shape = known[kind]
    torch.manual_seed(0)
    weight = torch.randn(problem.shape)
    weight = weight * problem.pattern.mask(weight.abs())
    tiles = KERNELS["reference"].tile(problem, PackedWeight.pack(weight, problem.pattern))
    residual = torch.randn(problem.output_shape(shape))
    leaves = [t.requires_grad_() for t in (torch.randn(shape), torch.randn(6), residual)]
    x, bias, _ = leaves
    expected = finish(multiply(problem, weight, x, bias), activation, residual)
    grad = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, leaves, grad)
    names = (problem.to_string(), "reference", activation)
    found = torch.autograd.grad(apply(x, list(tiles), bias, residual, *names), leaves, grad)
    for mine, theirs in zip(found, wanted, strict=True):
        assert_close(mine, theirs)
    (alone,) = torch.autograd.grad(apply(x, list(tiles), None, None, *names), x, grad)
    dense = finish(multiply(problem, weight, x), activation)
    assert_close(alone, torch.autograd.grad(dense, x, grad)[0])
