"""Packed storage: N:M weights as kept values and positions, and the file that holds them."""

from nmsparsity.packed.weight import PackedWeight

__all__ = ["PackedWeight"]
