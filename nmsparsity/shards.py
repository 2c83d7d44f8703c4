"""Weights that are spread over processes (DTensor, FSDP2): work on the local shard."""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor, nn

from nmsparsity.layout import Layout
from nmsparsity.pattern import Pattern

if torch.distributed.is_available():
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Partial, Replicate, Shard
else:  # pragma: no cover
    DTensor = Partial = Replicate = Shard = ()  # type: ignore[assignment, misc]


def local_shard(tensor: Tensor) -> Tensor:
    """The memory of this process, without autograd: the tensor itself when it is not sharded."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def put_back_shards(model: nn.Module) -> None:
    """Put the shards back into the model where FSDP2 left whole weights after a forward.

    It keeps those of the outermost module until the backward, which an evaluation has not.
    """
    # Where it was not imported, nothing is sharded by it.
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())
    for module in model.modules():
        if isinstance(module, kind):
            module.reshard()


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether elements of a tensor are one memory, as after ``expand``."""
    strides = zip(tensor.stride(), tensor.shape, strict=True)
    return any(stride == 0 and size > 1 for stride, size in strides)


def check_memory(name: str, parameter: nn.Parameter) -> None:
    """Refuse a weight that has no memory of its own.

    Raises:
        ValueError: naming the layer.
    """
    if parameter.is_meta:
        raise ValueError(
            f"layer {name!r} {list(parameter.shape)} is on the meta device, without values: call "
            "model.to_empty(device='cpu') and load its weights first"
        )
    if overlaps_itself(local_shard(parameter)):
        raise ValueError(
            f"layer {name!r} {list(parameter.shape)}: several of its weights are one memory (an "
            "expanded tensor); give it memory of its own by clone()"
        )


def like_parameter(local: Tensor, parameter: nn.Parameter) -> Tensor:
    """A local tensor as a DTensor placed like the parameter, or as it is."""
    data = parameter.detach()
    if not isinstance(data, DTensor):
        return local
    return DTensor.from_local(
        local,
        data.device_mesh,
        data.placements,
        run_check=False,
        shape=data.shape,
        stride=data.stride(),
    )


def total(value: Tensor, like: Tensor) -> Tensor:
    """A sum over the local shard of ``like`` as the sum over all of it, equal on every process."""
    data = like.detach()
    if not isinstance(data, DTensor):
        return value
    placements = [Partial() if p.is_shard() else Replicate() for p in data.placements]
    summed = DTensor.from_local(value, data.device_mesh, placements, run_check=False)
    return summed.full_tensor()


def check_shards(name: str, parameter: nn.Parameter, layout: Layout, pattern: Pattern) -> None:
    """Refuse a weight whose groups cross the border of a shard.

    Raises:
        ValueError: naming the layer.
    """
    data = parameter.detach()
    if not isinstance(data, DTensor):
        return
    for mesh_dim, placement in enumerate(data.placements):
        if placement.is_replicate():
            continue
        if not isinstance(placement, Shard) or not _whole_groups(
            data, mesh_dim, placement.dim, layout, pattern
        ):
            raise ValueError(
                f"layer {name!r} {list(data.shape)}: placement {placement} would cut the groups of "
                f"{pattern} along the {pattern.axis} axis; shard another dimension (fully_shard's "
                "shard_placement_fn), or exclude the layer"
            )


def _whole_groups(data: DTensor, mesh_dim: int, dim: int, layout: Layout, pattern: Pattern) -> bool:
    crosses = dim == layout.input_dim or (pattern.axis == "kernel" and dim >= 2)
    if not crosses:
        return True
    if layout.conv_groups > 1 or pattern.axis == "kernel":
        return False
    per_rank = math.ceil(data.shape[dim] / data.device_mesh.size(mesh_dim))
    return per_rank % pattern.m == 0
