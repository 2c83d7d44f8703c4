"""Packed storage: N:M weights as kept values and positions, and the file that holds them."""

from nmsparsity.packed.file import Contents, PackedFileError, read, write
from nmsparsity.packed.infer import infer, shown
from nmsparsity.packed.model import Saved, load, save
from nmsparsity.packed.weight import PackedWeight

__all__ = [
    "Contents",
    "PackedFileError",
    "PackedWeight",
    "Saved",
    "infer",
    "load",
    "read",
    "save",
    "shown",
    "write",
]
