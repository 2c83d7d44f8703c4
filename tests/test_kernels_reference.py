"""The reference kernel against plain torch; the tiles of every kernel, bit by bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from nmsparsity.kernels import KERNELS, Kernel, Problem, ReferenceKernel, kernel
from nmsparsity.packed.codings import CODINGS
from nmsparsity.packed.weight import PackedWeight
from nmsparsity.pattern import Pattern

PATTERNS = [Pattern(2, 4), Pattern(1, 4), Pattern(3, 7), Pattern(4, 8, "kernel")]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def problem(kind: str, pattern: Pattern, dtype: torch.dtype = torch.float32) -> Problem:
    if kind == "linear":
        return Problem("linear", (6, 16), pattern, dtype)
    return Problem("conv2d", (6, 8, 3, 3), pattern, dtype, (2, 1), (1, 0), (1, 2), 2)


def weights(posed: Problem) -> tuple[Tensor, PackedWeight]:
    weight = torch.randn(posed.shape, generator=torch.Generator().manual_seed(0))
    weight = (weight * posed.pattern.mask(weight.abs())).to(posed.dtype)
    return weight, PackedWeight.pack(weight, posed.pattern)


def x_of(posed: Problem) -> Tensor:
    shape = (3, 16) if posed.kind == "linear" else (2, 16, 5, 6)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(posed.dtype)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("kind", ["linear", "conv2d"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_torch_computes(kind: str, pattern: Pattern, dtype: torch.dtype) -> None:
    reference, posed = KERNELS["reference"], problem(kind, pattern, dtype)
    weight, packed = weights(posed)
    tiles, x, bias = reference.tile(posed, packed), x_of(posed), torch.arange(6).to(dtype)
    expected = (
        functional.linear(x, weight, bias)
        if kind == "linear"
        else functional.conv2d(x, weight, bias, (2, 1), (1, 0), (1, 2), 2)
    )
    assert_close(reference.run(posed, tiles, x, bias), expected)
    residual = torch.ones_like(expected)
    got = reference.run(posed, tiles, x, bias, "silu", residual)
    assert_close(got, functional.silu(expected + 1))
    unbiased = reference.run(posed, tiles, x)
    assert_close(reference.run(posed, tiles, x, torch.zeros(6).to(dtype)), unbiased)
    assert_close(reference.run(posed, tiles, x, activation="relu"), torch.relu(unbiased))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("kind", ["linear", "conv2d"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(KERNELS))
def test_tiles_are_undone_bit_by_bit(
    name: str, kind: str, pattern: Pattern, dtype: torch.dtype
) -> None:
    posed = problem(kind, pattern, dtype)
    if KERNELS[name].refuses(posed) is not None:
        return
    packed = weights(posed)[1]
    again = KERNELS[name].untile(posed, KERNELS[name].tile(posed, packed))
    assert_close(again.values, packed.values, rtol=0, atol=0)
    assert torch.equal(again.positions, packed.positions)
    assert (again.coding, again.shape, again.pattern) == (packed.coding, posed.shape, pattern)


def test_another_coding_of_positions_is_taken_too() -> None:
    posed = problem("linear", Pattern(2, 4))
    weight, packed = weights(posed)
    other = "bitmask" if packed.coding != "bitmask" else "index"
    stream = CODINGS[other].encode(packed._mask(), 2)
    recoded = PackedWeight(
        packed.values, torch.from_numpy(stream), posed.pattern, packed.layout, posed.shape, other
    )
    tiles = ReferenceKernel().tile(posed, recoded)
    assert torch.equal(ReferenceKernel().untile(posed, tiles).unpack(), weight)


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="kernel 'reference' is registered already"):
        kernel(ReferenceKernel)
    assert issubclass(ReferenceKernel, Kernel)
