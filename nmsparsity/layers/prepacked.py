"""A linear layer that stays dense, its weight laid out as torch's products like it best."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


class PrepackedLinear(nn.Linear):
    """`nn.Linear` on fp32 weights on a CPU, for inference, with a second copy of the weight.

    ``weight`` is the parameter of the plain layer, tied to others as it was; the copy follows it
    (but not what is written through ``weight.data``, which torch does not count) and is neither
    saved nor copied. What is traced, compiled or differentiated goes the plain way.

    Args:
        plain: the layer it stands for.
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
        self._copy: tuple[Any, Tensor] | None = None
        keep_hooks(plain, self)
        self.train(plain.training)

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        assert weight is not None
        if _needs_torch(input, weight, bias):
            return functional.linear(input, weight, bias)
        rows = input.reshape(-1, self.in_features)
        found = ORDERS[self.order][1](rows, self.laid_out(), bias)
        return found.reshape(*input.shape[:-1], self.out_features)

    def laid_out(self) -> Tensor:
        """The copy of the weight, made anew where that was changed since."""
        weight = self._parameters["weight"]
        assert weight is not None
        version = None if weight.is_inference() else weight._version
        seen = (weight.data_ptr(), version)
        if self._copy is None or self._copy[0] != seen:
            with torch.no_grad():
                self._copy = (seen, ORDERS[self.order][0](weight.detach()))
        return self._copy[1]

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
        return {**self.__dict__, "_copy": None}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, order={self.order}"


def _needs_torch(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the copy is not for this call; errors are then torch's own."""
    if watched(x, weight, bias) or x.shape[-1:] != weight.shape[1:]:
        return True
    plain = x.dtype is weight.dtype is torch.float32 and x.device.type == weight.device.type
    return not plain or x.device.type != "cpu" or torch.is_autocast_enabled("cpu")
