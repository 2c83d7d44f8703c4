"""Modules that hold a packed weight and call a kernel: what `nmsparsity.compress` puts in place."""

from nmsparsity.layers.attention import PackedMultiheadAttention
from nmsparsity.layers.conv import PackedConv1d, PackedConv2d
from nmsparsity.layers.linear import PackedLinear
from nmsparsity.layers.packed import PackedLayer
from nmsparsity.layers.packing import pack, why_not

__all__ = [
    "PackedConv1d",
    "PackedConv2d",
    "PackedLayer",
    "PackedLinear",
    "PackedMultiheadAttention",
    "pack",
    "why_not",
]
