"""The weight of a packed layer as others see it: a tensor that is unpacked when it is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

_ABOUT = {
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.element_size, Tensor.is_floating_point),
    *(getattr(Tensor, name).__get__ for name in ("dtype", "shape", "device", "ndim", "layout")),
    *(getattr(Tensor, name).__get__ for name in ("requires_grad", "nbytes", "itemsize")),
}


class LazyWeight(Tensor):
    """What a weight is can be asked for nothing; whatever else is done with it unpacks it, once.

    Models ask a layer's weight for its dtype in their forward. Results are plain tensors; what is
    written into it is lost.

    Args:
        shape, dtype, device: of the dense weight.
        unpack: gives the dense weight.

    >>> weight = LazyWeight((2, 2), torch.float32, torch.device("cpu"), lambda: torch.eye(2))
    >>> weight.shape, weight.sum()
    (torch.Size([2, 2]), tensor(2.))
    """

    _unpack: Callable[[], Tensor]
    _dense: Tensor | None

    @staticmethod
    def __new__(
        cls,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        unpack: Callable[[], Tensor],
    ) -> LazyWeight:
        made = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        made._unpack, made._dense = unpack, None
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ABOUT:
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        return cls.__torch_dispatch__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = _pytree.tree_map_only(cls, _dense, (args, kwargs or {}))
        return func(*args, **kwargs)


def _dense(weight: LazyWeight) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        if weight._dense is None:
            weight._dense = weight._unpack()
        return weight._dense
