"""The fused path of torch's transformer layers, which reads dense weights past packed layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from nmsparsity.layers.packed import PackedLayer

_KEPT = "_nmsparsity_fast_path"


def leave_fast_paths(model: nn.Module) -> None:
    """Let encoder layers that hold packed layers call them, in place.

    In eval mode `nn.TransformerEncoderLayer` hands the weights of all its layers to one operator,
    and `nn.TransformerEncoder` makes nested tensors for it. With these settings neither does.
    """
    for module in model.modules():
        if any(isinstance(part, PackedLayer) for part in module.modules()):
            name = _switch(module)
            if name is not None and not hasattr(module, _KEPT):
                setattr(module, _KEPT, getattr(module, name))
                setattr(module, name, False)


def fast_path_parts(model: nn.Module) -> set[nn.Module]:
    """The layers whose dense weights torch's fused path reads itself."""
    return {
        part
        for module in model.modules()
        if isinstance(module, nn.TransformerEncoderLayer) and not hasattr(module, _KEPT)
        for part in module.modules()
    }


def take_fast_paths(model: nn.Module) -> None:
    """Undo `leave_fast_paths`, in place."""
    for module in model.modules():
        name = _switch(module)
        if name is not None and hasattr(module, _KEPT):
            setattr(module, name, getattr(module, _KEPT))
            delattr(module, _KEPT)


@contextmanager
def without_fast_paths() -> Iterator[None]:
    """With no fused path anywhere: no nested tensors, whose padding differs, no fused operator."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _switch(module: nn.Module) -> str | None:
    if isinstance(module, nn.TransformerEncoderLayer):
        return "activation_relu_or_gelu"
    return "use_nested_tensor" if isinstance(module, nn.TransformerEncoder) else None
