"""Tensors as a file can hold them: plain, contiguous, each memory once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nmsparsity.packed.weight import PackedWeight

_DTYPES = {
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64, torch.complex64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
}


def aliases(packed: Mapping[str, PackedWeight], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Every name whose weight or tensor an earlier name has already -> that earlier name.

    >>> tied = torch.zeros(3)
    >>> aliases({}, {"encoder": tied, "decoder": tied, "bias": torch.zeros(3)})
    {'decoder': 'encoder'}
    """
    first: dict[object, str] = {}
    found = {}
    for name, thing in [*packed.items(), *tensors.items()]:
        key = _memory(thing) if isinstance(thing, Tensor) else id(thing)
        earlier = first.setdefault(key, name)
        if earlier != name:
            found[name] = earlier
    return found


def storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors detached, on the CPU, contiguous, and no two in one storage."""
    ready: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in taken:
            tensor = tensor.clone()
        taken.add(tensor.untyped_storage().data_ptr())
        ready[name] = tensor
    return ready


def _memory(tensor: Tensor) -> object:
    """Equal for two tensors that are the same elements in the same memory."""
    if not tensor.numel():
        return id(tensor)
    return (
        *(tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset()),
        *(tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.is_conj(), tensor.is_neg()),
    )


def check_storable(name: str, tensor: Tensor) -> None:
    """Refuse what is no tensor, or none that a file can hold; a ValueError naming it."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name!r} is a {type(tensor).__name__}, not a tensor; leave it out")
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        raise ValueError(
            f"{name!r} is a {type(tensor).__name__}; gather it into a plain tensor first "
            "(a DTensor by full_tensor())"
        )
    if tensor.is_meta:
        raise ValueError(f"{name!r} is on the meta device and has no data; load it first")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.dtype not in _DTYPES:
        raise ValueError(
            f"{name!r} is {tensor.dtype} in layout {tensor.layout}, which safetensors cannot hold; "
            "convert it to a plain dense tensor first"
        )
