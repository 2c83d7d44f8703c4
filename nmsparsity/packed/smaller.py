"""A weight packed where that makes it smaller."""

from __future__ import annotations

import torch
from torch import Tensor

from nmsparsity.layout import Layout
from nmsparsity.packed.coding import LARGEST_GROUP
from nmsparsity.packed.infer import infer, packed_bytes, shown
from nmsparsity.packed.weight import DTYPES, PackedWeight, check_holds
from nmsparsity.pattern import Pattern


def pack_smaller(
    weight: Tensor, pattern: Pattern, layout: Layout, name: str
) -> PackedWeight | None:
    """The weight packed, loss-free; None where that takes no fewer bytes than the plain one.

    Groups of more than 256 weights, which positions of one byte cannot index, are packed in the
    smaller pattern that their zeros show.

    Raises:
        ValueError: naming the weight, where it does not follow the pattern.
    """
    if pattern.m <= LARGEST_GROUP:
        if packed_bytes(weight, pattern, layout) < weight.nbytes:
            return PackedWeight.pack(weight, pattern, layout, name)
        check_holds(weight, pattern, layout, name)
        return None
    check_holds(weight, pattern, layout, name)
    smaller = infer(weight, layout)
    return None if smaller is None else PackedWeight.pack(weight, smaller, layout, name)


def packable(weight: Tensor, layout: Layout) -> Pattern | None:
    """The pattern in which a weight without a promise is packed; None to store it plain."""
    if weight.dim() < 2 or weight.dtype not in DTYPES:
        return None
    pattern = shown(weight, layout)
    return pattern if pattern is not None and bool(torch.isfinite(weight).all()) else None
