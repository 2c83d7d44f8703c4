"""A linear layer that stays dense, its weight laid out as torch's products like it best."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nmsparsity.kernels.op import watched
from nmsparsity.layers.plain import keep_hooks

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _transpose(weight: Tensor) -> Tensor:
    return weight.t().contiguous()


def _times_transposed(x: Tensor, laid_out: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(x, laid_out) if bias is None else torch.addmm(bias, x, laid_out)


def _block(weight: Tensor) -> Tensor:
    laid_out: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return laid_out


def _times_blocks(x: Tensor, laid_out: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, laid_out, bias, "none", [], "")
    return found


ORDERS: Mapping[str, tuple[Callable[[Tensor], Tensor], Product]] = {
    "transposed": (_transpose, _times_transposed),
    "onednn": (_block, _times_blocks),
}
"""How a weight ``[out, in]`` can be laid out, and the product of rows ``[n, in]`` with it."""


def orders() -> list[str]:
    """The orders that this build of torch has.

    >>> orders()[0]
    'transposed'
    """
    built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    has_onednn = built and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    )
    return [name for name in ORDERS if name != "onednn" or has_onednn]


@dataclass(frozen=True)
class _Copy:
    """A weight in another order; the one it was made of is held, so that its memory stays its."""

    source: Tensor
    version: int
    laid_out: Tensor

    def is_of(self, weight: Tensor) -> bool:
        return weight.data_ptr() == self.source.data_ptr() and weight._version == self.version


class PrepackedLinear(nn.Linear):
    """`nn.Linear` on fp32 weights on a CPU, for inference, with a second copy of the weight.

    ``weight`` is the parameter of the plain layer, tied to others as it was; the copy follows it
    and is neither saved nor copied. It cannot follow what torch does not count: what is written
    through ``weight.data``, or by another process. What is traced, compiled or differentiated goes
    the plain way.

    Args:
        plain: the layer it stands for; without buffers, modules and hooks of its own.
        order: one of `orders`.

    >>> plain = nn.Linear(4, 2)
    >>> x = torch.randn(3, 4)
    >>> bool(torch.allclose(PrepackedLinear(plain, "transposed")(x), plain(x), atol=1e-6))
    True
    """

    def __init__(self, plain: nn.Linear, order: str) -> None:
        bias = plain.bias is not None
        super().__init__(plain.in_features, plain.out_features, bias=bias, device="meta")
        self.order = order
        for name, value in vars(plain).items():
            vars(self).setdefault(name, value)  # What others hang on a layer.
        self._parameters.update(plain._parameters)
        self._copy: _Copy | None = None
        self.train(plain.training)

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        weight, bias = self.weight, self.bias
        if _needs_torch(input, weight, bias):
            return functional.linear(input, weight, bias)
        rows = input.reshape(-1, weight.shape[1])
        found = ORDERS[self.order][1](rows, self._laid_out(weight), bias)
        return found.reshape(*input.shape[:-1], weight.shape[0])

    def _laid_out(self, weight: Tensor) -> Tensor:
        """The copy of the weight, made anew where that was changed since."""
        if self._copy is None or not self._copy.is_of(weight):
            source = weight.detach()
            self._copy = _Copy(source, weight._version, ORDERS[self.order][0](source))
        return self._copy.laid_out

    def plain(self) -> nn.Linear:
        """The plain layer again, with the same parameters."""
        bias = self.bias is not None
        layer = nn.Linear(self.in_features, self.out_features, bias=bias, device="meta")
        layer._parameters.update(self._parameters)
        keep_hooks(self, layer)
        for name, value in vars(self).items():
            if name not in ("order", "_copy"):
                vars(layer).setdefault(name, value)
        return layer.train(self.training)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_copy": None}  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, order={self.order}"


def _needs_torch(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the copy is not for this call; errors are then torch's own."""
    if watched(x, weight, bias) or _transformed() or type(weight) is not nn.Parameter:
        return True
    if weight.is_inference() or x.is_nested or x.layout is not torch.strided:
        return True
    plain = x.dtype is weight.dtype is torch.float32 and x.shape[-1:] == weight.shape[1:]
    on_cpu = x.device.type == weight.device.type == "cpu"
    return not (plain and on_cpu) or torch.is_autocast_enabled("cpu")


def _transformed() -> bool:
    """Whether torch.func is at work, or forward-mode differentiation."""
    interpreted = torch._C._functorch.peek_interpreter_stack() is not None
    return interpreted or torch.autograd.forward_ad._current_level >= 0
