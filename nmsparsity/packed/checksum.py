"""The checksum of a packed file: over every byte of it, at a fixed place."""

from __future__ import annotations

import hashlib
import os
from typing import BinaryIO

from nmsparsity.packed.header import NO_CHECKSUM

START = b'{"__metadata__":{"nmsparsity":"{\\"sha256\\":\\"'
_LENGTH_BYTES = 8
_PLACE = _LENGTH_BYTES + len(START)
_CHUNK = 2**20


def seal(file: BinaryIO) -> None:
    """Write the checksum over its placeholder in a file open for reading and writing, in place."""
    file.seek(0)
    head = file.read(_PLACE + len(NO_CHECKSUM))
    if head[_LENGTH_BYTES:] != START + NO_CHECKSUM.encode():
        raise RuntimeError(
            f"safetensors wrote a header that begins with {head!r}; this nmsparsity does not know "
            "that layout: install another version of safetensors"
        )
    digest = _digest(file)
    file.seek(_PLACE)
    file.write(digest.encode())


def verify(file: BinaryIO) -> None:
    """Check that the file is one of ours and that no byte of it has changed.

    Raises:
        ValueError: saying which of the two it is.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(_PLACE + len(NO_CHECKSUM))
    length = int.from_bytes(head[:_LENGTH_BYTES], "little")
    if size < _LENGTH_BYTES + 2 or length > size - _LENGTH_BYTES:
        raise ValueError("not a safetensors file, or one cut short: write or copy it again")
    if head[_LENGTH_BYTES:_PLACE] != START:
        raise ValueError(
            "not a packed file of nmsparsity, or a damaged one; a plain safetensors file is read "
            "with safetensors.torch.load_file"
        )
    if head[_PLACE:] != _digest(file).encode():
        raise ValueError(
            "its checksum does not match: the file was damaged, cut short or changed after it was "
            "written; copy or write it again"
        )


def _digest(file: BinaryIO) -> str:
    """SHA-256 of the file with 64 zeros in place of the checksum, in lower-case hexadecimal."""
    file.seek(0)
    digest = hashlib.sha256(file.read(_PLACE))
    digest.update(NO_CHECKSUM.encode())
    file.seek(len(NO_CHECKSUM), os.SEEK_CUR)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
