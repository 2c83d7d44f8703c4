"""The operator that compilers, tracers and autograd see in place of a kernel's Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from nmsparsity.kernels.base import KERNELS, Kernel
from nmsparsity.kernels.gradient import gradients
from nmsparsity.kernels.problem import Problem, memory_format

_PLAIN = (Tensor, Parameter)


def traced() -> bool:
    """Whether a compiler, a tracer or a dispatch mode looks on."""
    return bool(
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack()
    )


def watched(x: Tensor, residual: Tensor | None, bias: Tensor | None) -> bool:
    """Whether a call must be an operator: it is compiled, traced or differentiated.

    The kernels themselves write to memory behind torch's back: a trace would hold an empty tensor,
    and a gradient would be cut.
    """
    if traced() or type(x) not in _PLAIN:
        return True
    if not torch.is_grad_enabled():
        return False
    return any(t is not None and t.requires_grad for t in (x, residual, bias))


def _run(
    x: Tensor,
    tiles: Sequence[Tensor],
    bias: Tensor | None,
    residual: Tensor | None,
    problem: str,
    kernel: str,
    activation: str,
) -> Tensor:
    return _prepared(KERNELS[kernel], problem)(tiles, x, bias, activation, residual)


@lru_cache(maxsize=1024)
def _prepared(kernel: Kernel, problem: str) -> Callable[..., Tensor]:
    return kernel.prepare(Problem.from_string(problem))


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


def _unpack(tiles: Sequence[Tensor], problem: str, kernel: str) -> Tensor:
    """The dense weight, on the device of its tiles."""
    return KERNELS[kernel].untile(Problem.from_string(problem), tiles).unpack().to(tiles[0].device)


def _fake_weight(tiles: Sequence[Tensor], problem: str, kernel: str) -> Tensor:
    known = Problem.from_string(problem)
    return torch.empty(known.shape, dtype=known.dtype, device=tiles[0].device)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, tiles, bias, residual, *ctx.names = inputs
    ctx.save_for_backward(x, bias, residual, *tiles)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Gradients of input, bias and residual; the packed weight has none."""
    x, bias, residual, *tiles = ctx.saved_tensors
    problem, kernel, activation = ctx.names
    dense = weight(tiles, problem, kernel)
    known = Problem.from_string(problem)
    wanted = (ctx.needs_input_grad[0], bias is not None and bias.requires_grad)
    found = gradients(known, dense, x, bias, activation, residual, grad, wanted)
    return (found[0], [None] * len(tiles), *found[1:], None, None, None)


_ARGUMENTS = "Tensor[] tiles, Tensor? bias, Tensor? residual, str problem, str kernel"
_SCHEMA = f"(Tensor x, {_ARGUMENTS}, str activation) -> Tensor"
_WEIGHT_SCHEMA = "(Tensor[] tiles, str problem, str kernel) -> Tensor"

weight = torch.library.custom_op(
    "nmsparsity::weight", _unpack, mutates_args=(), schema=_WEIGHT_SCHEMA
)
"""``nmsparsity::weight``: the dense weight of a packed layer, for gradients."""
weight.register_fake(_fake_weight)

apply = torch.library.custom_op("nmsparsity::apply", _run, mutates_args=(), schema=_SCHEMA)
"""``nmsparsity::apply``: `Kernel.run` as one operator of torch.

Layers call it where somebody is `watched`; else they call the kernel itself, since an operator
written in Python costs tens of microseconds a call.
"""
apply.register_fake(_fake)
apply.register_autograd(_backward, setup_context=_keep)
