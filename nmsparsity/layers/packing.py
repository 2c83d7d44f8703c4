"""A plain layer to a packed one, or the reason it has to stay as it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nmsparsity.kernels.problem import Pair, Problem
from nmsparsity.layers.conv import PackedConv1d, PackedConv2d
from nmsparsity.layers.linear import PackedLinear
from nmsparsity.layers.packed import PackedLayer
from nmsparsity.layout import input_first
from nmsparsity.packed.weight import DTYPES, PackedWeight
from nmsparsity.pattern import Pattern


def pack(
    module: nn.Module,
    pattern: Pattern,
    name: str = "layer",
    kernel: str = "reference",
) -> PackedLayer:
    """A new packed layer with the weight of this one, which follows the pattern already.

    Raises:
        ValueError: naming the layer, when it cannot be packed (`why_not`), when its weight breaks
            the pattern, and when the kernel refuses it.
    """
    reason = why_not(module)
    if reason is not None:
        raise ValueError(f"layer {name!r} cannot be packed: {reason}")
    problem = describe(module, pattern, name)
    weight = packed_weight(module, pattern, name)
    return _packed_type(module)(module, problem, weight, kernel)


def why_not(module: nn.Module) -> str | None:
    """Why a layer cannot be packed, in words; None when it can.

    >>> why_not(nn.Conv3d(4, 4, 3))
    'Conv3d has no packed form: nn.Linear, nn.Conv1d, nn.Conv2d and Conv1D of transformers have'
    """
    kind = type(module).__name__
    if not (isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)) or input_first(module)):
        return (
            f"{kind} has no packed form: nn.Linear, nn.Conv1d, nn.Conv2d and Conv1D of "
            "transformers have"
        )
    if "parametrizations" in module._modules or "weight" not in module._parameters:
        return "its weight is computed from others (parametrization or weight norm)"
    if not _computes_as_its_base(module):
        return f"{kind} has a forward of its own, which a packed layer would not run"
    weight = module._parameters["weight"]
    if weight is None or weight.dtype not in DTYPES:
        return f"its dtype {None if weight is None else weight.dtype} has no packed form"
    reason = why_no_device(weight.device)
    if reason is None and isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return _why_no_geometry(module)
    return reason


def why_no_device(device: torch.device) -> str | None:
    """Why nothing can be packed there; None for the devices that have kernels.

    >>> why_no_device(torch.device("meta"))
    'it is on meta, and packed kernels run on CPUs and NVIDIA GPUs: move it there first'
    """
    if device.type in ("cpu", "cuda"):
        return None
    return f"it is on {device}, and packed kernels run on CPUs and NVIDIA GPUs: move it there first"


def describe(module: nn.Module, pattern: Pattern, name: str) -> Problem:
    """The problem that a layer poses; it must be one that can be packed."""
    weight = _weight(module)
    shape, dtype, device = tuple(weight.shape), weight.dtype, str(weight.device)
    if not isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return Problem("linear", shape, pattern, dtype, device=device, name=name)
    stride, dilation = _pair(module.stride, 1), _pair(module.dilation, 1)
    padding = _padding(module)
    geometry = (stride, padding, dilation, module.groups)
    return Problem("conv2d", shape, pattern, dtype, *geometry, device=device, name=name)


def packed_weight(module: nn.Module, pattern: Pattern, name: str) -> PackedWeight:
    """The weight of a layer in storage form, shaped as kernels have it."""
    return PackedWeight.pack(_weight(module), pattern, name=f"{name}.weight")


def _weight(module: nn.Module) -> Tensor:
    """The weight as kernels have it: ``[out, in]`` or ``[out, in / groups, height, width]``."""
    weight = module._parameters["weight"]
    assert weight is not None
    if input_first(module):
        return weight.detach().t().contiguous()
    return weight.detach().unsqueeze(2) if isinstance(module, nn.Conv1d) else weight.detach()


def _packed_type(module: nn.Module) -> type[PackedLayer]:
    if isinstance(module, nn.Conv1d):
        return PackedConv1d
    return PackedConv2d if isinstance(module, nn.Conv2d) else PackedLinear


def _computes_as_its_base(module: nn.Module) -> bool:
    if "forward" in vars(module) or "_conv_forward" in vars(module):
        return False
    kind: Any = type(module)
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        base: Any = nn.Conv1d if isinstance(module, nn.Conv1d) else nn.Conv2d
        return kind.forward is base.forward and kind._conv_forward is base._conv_forward
    return kind.forward is nn.Linear.forward or (input_first(module) and kind.__name__ == "Conv1D")


def _why_no_geometry(module: nn.Conv1d | nn.Conv2d) -> str | None:
    if module.padding_mode != "zeros":
        return f"its padding mode is {module.padding_mode!r}; packed convolutions pad with zeros"
    if module.padding == "same":
        reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if any(size % 2 for size in reach):
            return "padding 'same' with an even kernel pads one side more than the other"
    return None


def _padding(module: nn.Conv1d | nn.Conv2d) -> Pair:
    if module.padding == "same":
        reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return _pair(tuple(size // 2 for size in reach), 0)
    return (0, 0) if isinstance(module.padding, str) else _pair(module.padding, 0)


def _pair(sizes: tuple[int, ...], above: int) -> Pair:
    """Of two dimensions; a one-dimensional convolution gets a height that does nothing."""
    height, width = sizes if len(sizes) == 2 else (above, *sizes)
    return (height, width)
