"""The idx file format of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import torch
from torch import Tensor


def read_idx(path: str | Path) -> Tensor:
    """A uint8 idx file, gzipped or not, as a tensor of the shape it declares.

    The format: two zero bytes, 8 for uint8, the number of dimensions, each dimension as a
    big-endian uint32, then the values in C order (yann.lecun.com/exdb/mnist).

    Raises:
        ValueError: if the file is no uint8 idx file or its length does not fit its shape.
    """
    path = Path(path)
    raw = path.read_bytes()
    data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path}: not an idx file of uint8 (starts with {data[:4].hex()!r})")
    start = 4 + 4 * data[3]
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4)]
    if len(data) - start != math.prod(shape):
        raise ValueError(
            f"{path}: {len(data) - start} values where shape {shape} needs {math.prod(shape)}; "
            "the file is damaged, get it again"
        )
    return torch.frombuffer(bytearray(data[start:]), dtype=torch.uint8).reshape(shape)


def write_idx(values: Tensor, path: str | Path) -> None:
    """Write a uint8 tensor as an idx file; gzipped if the name ends in ``.gz``.

    The same values always give the same bytes.
    """
    if values.dtype != torch.uint8:
        raise ValueError(f"{path}: want uint8 values, got {values.dtype}")
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    data = b"\x00\x00\x08" + bytes([values.dim()]) + sizes + values.contiguous().numpy().tobytes()
    path = Path(path)
    path.write_bytes(gzip.compress(data, 9, mtime=0) if path.suffix == ".gz" else data)
