"""Gradients of a packed multiplication, in plain torch by the dense weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nmsparsity.kernels.problem import Problem
from nmsparsity.kernels.reference import multiply

_aten = torch.ops.aten

_SLOPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda grad, total: _aten.threshold_backward(grad, total, 0),
    "gelu": lambda grad, total: _aten.gelu_backward(grad, total),
    "gelu_tanh": lambda grad, total: _aten.gelu_backward(grad, total, approximate="tanh"),
    "silu": lambda grad, total: _aten.silu_backward(grad, total),
}


def gradients(
    problem: Problem,
    weight: Tensor,
    x: Tensor,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    grad: Tensor,
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of input, bias and residual of ``activation(x @ weight + bias + residual)``.

    Args:
        problem: of the weight.
        weight: dense, ``[out, in, ...]``.
        x, bias, activation, residual: as of `Kernel.run`.
        grad: of the result.
        wanted: whether those of input and bias are; the others are None.
    """
    if activation != "none":
        total = multiply(problem, weight, x, bias)
        grad = _SLOPES[activation](grad, total if residual is None else total + residual)
    for_x = _of_input(problem, weight, x, grad) if wanted[0] else None
    channel = grad.dim() - 1 if problem.kind == "linear" else 1
    others = [dim for dim in range(grad.dim()) if dim != channel]
    for_bias = grad.sum(others) if wanted[1] and others else grad if wanted[1] else None
    return for_x, for_bias, None if residual is None else grad


def _of_input(problem: Problem, weight: Tensor, x: Tensor, grad: Tensor) -> Tensor:
    if problem.kind == "linear":
        return grad @ weight
    geometry = (problem.stride, problem.padding, problem.dilation, False, (0, 0), problem.groups)
    taken: tuple[Tensor, ...] = _aten.convolution_backward(
        grad, x, weight, None, *geometry, (True, False, False)
    )
    return taken[0]
