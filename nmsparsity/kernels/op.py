"""The operator that compilers and exporters see in place of a kernel's Python."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nmsparsity.kernels.base import KERNELS
from nmsparsity.kernels.problem import Problem, memory_format


def _run(
    x: Tensor,
    tiles: Sequence[Tensor],
    bias: Tensor | None,
    residual: Tensor | None,
    problem: str,
    kernel: str,
    activation: str,
) -> Tensor:
    known = Problem.from_string(problem)
    return KERNELS[kernel].run(known, tiles, x, bias, activation, residual)


def _fake(
    x: Tensor,
    tiles: Sequence[Tensor],
    bias: Tensor | None,
    residual: Tensor | None,
    problem: str,
    kernel: str,
    activation: str,
) -> Tensor:
    """The shape, dtype and memory format of the result, without computing it."""
    shape = Problem.from_string(problem).output_shape(x.shape)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


_SCHEMA = (
    "(Tensor x, Tensor[] tiles, Tensor? bias, Tensor? residual, str problem, str kernel, "
    "str activation) -> Tensor"
)

apply = torch.library.custom_op("nmsparsity::apply", _run, mutates_args=(), schema=_SCHEMA)
"""``nmsparsity::apply``: `Kernel.run` as one operator of torch.

In eager mode layers call the kernel itself, since an operator written in Python costs tens of
microseconds a call; under ``torch.compile`` and ``torch.export`` they call this.
"""
apply.register_fake(_fake)
