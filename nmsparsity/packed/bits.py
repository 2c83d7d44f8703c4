"""Unsigned numbers of one width as a stream of bits."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = NDArray[np.uint8]
Numbers: TypeAlias = NDArray[np.unsignedinteger[Any]]
Bools: TypeAlias = NDArray[np.bool_]


def size(count: int, width: int) -> int:
    """The bytes that ``count`` numbers of ``width`` bits fill."""
    return -(-count * width // 8)


def pack(numbers: Numbers, width: int) -> Bytes:
    """Numbers below ``2**width`` as bytes; the last byte is completed with zero bits.

    Bit ``i`` of the stream is bit ``i % 8``, counted from the least significant, of byte
    ``i // 8``. A number's least significant bit comes first.

    >>> pack(np.array([1, 2, 3], np.uint8), 3).tolist()  # 100 010 110 -> 10001011 0
    [209, 0]
    """
    if width == 0:
        return np.zeros(0, np.uint8)
    if width == 1:
        return np.packbits(numbers.astype(np.uint8, copy=False), bitorder="little")
    little = numbers.astype(numbers.dtype.newbyteorder("<"), copy=False)
    spread = np.unpackbits(little.view(np.uint8), bitorder="little")
    fields = spread.reshape(-1, 8 * little.itemsize)[:, :width]
    return np.packbits(fields.ravel(), bitorder="little")


def unpack(stream: Bytes, count: int, width: int) -> Numbers:
    """Undo `pack`: uint8 up to 8 bits, uint64 above.

    Raises:
        ValueError: for a stream of another length, and for set bits after the last number.
    """
    if len(stream) != size(count, width):
        raise ValueError(f"{len(stream)} bytes, want {size(count, width)}")
    bits = np.unpackbits(stream, bitorder="little")
    if bits[count * width :].any():
        raise ValueError("the bits after the last position are not zero")
    fields = bits[: count * width].reshape(count, width)
    if width == 1:
        return fields.reshape(count)
    spread = np.zeros((count, 8 if width <= 8 else 64), np.uint8)
    spread[:, :width] = fields
    packed = np.packbits(spread, bitorder="little")
    return packed if width <= 8 else packed.view("<u8").astype(np.uint64)
