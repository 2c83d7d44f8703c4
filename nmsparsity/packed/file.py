"""The packed file: one safetensors file with packed weights and plain tensors."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nmsparsity.packed.checksum import seal, verify
from nmsparsity.packed.header import Header, describe, rebuild
from nmsparsity.packed.storable import aliases, check_storable, storable
from nmsparsity.packed.weight import PackedWeight
from nmsparsity.pattern import Pattern

_PARTS = ("values", "positions")


class PackedFileError(ValueError):
    """A packed file that cannot be trusted; nothing was loaded from it."""


@dataclass(frozen=True)
class Contents:
    """What a packed file holds; two names of one thing are the same object.

    ``promises`` are the patterns that weights, packed or plain, are promised to follow.
    """

    packed: dict[str, PackedWeight]
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    promises: dict[str, Pattern]


def write(
    path: str | os.PathLike[str],
    packed: Mapping[str, PackedWeight],
    tensors: Mapping[str, Tensor] | None = None,
    metadata: Mapping[str, str] | None = None,
    promises: Mapping[str, Pattern] | None = None,
) -> int:
    """Write a packed file, entirely or not at all; the same content gives the same bytes.

    Weight ``W`` is stored as the tensors ``W.values`` and ``W.positions``. Tensors that are one
    and the same memory, and packed weights that are one object, are stored once.

    Args:
        path: an existing file is replaced once the new one is complete on the disk.
        packed: by name.
        tensors: by name, any dtype and shape that safetensors can hold.
        metadata: text by key, returned by `read` as it is.
        promises: the patterns that weights, packed or plain, are promised to follow; default:
            every packed one its own.

    Returns:
        The size of the file in bytes.

    Raises:
        ValueError: for names that collide, things that are no tensors or cannot be stored, and
            metadata that is not text.
        OSError: where the file cannot be written.
    """
    tensors, metadata = tensors or {}, metadata or {}
    for name, tensor in tensors.items():
        check_storable(name, tensor)
    _check_metadata(metadata)
    other = aliases(packed, tensors)
    kept = {name: weight for name, weight in packed.items() if name not in other}
    plain = {name: tensor for name, tensor in tensors.items() if name not in other}
    _check_names(kept, [*plain, *other])
    parts = {f"{name}.{part}": getattr(kept[name], part) for name in kept for part in _PARTS}
    header = Header({name: describe(kept[name]) for name in kept}, other, metadata, promises)
    return _replace(Path(os.path.realpath(path)), storable({**parts, **plain}), header.to_json())


def read(path: str | os.PathLike[str]) -> Contents:
    """Read a packed file and check every byte and every number in it.

    Raises:
        PackedFileError: naming the file and what is wrong with it. Nothing is half-loaded.
        OSError: where there is no file to read.
    """
    try:
        with open(path, "rb") as file:
            verify(file)
        with safe_open(path, framework="pt") as stored:
            header = Header.from_json((stored.metadata() or {}).get("nmsparsity", ""))
            # A copy: the library's tensors may be windows into a file that others can change.
            tensors = {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118
        return _contents(header, tensors)
    except (ValueError, SafetensorError) as error:
        raise PackedFileError(f"{os.fspath(path)}: {error}") from None


def _contents(header: Header, tensors: dict[str, Tensor]) -> Contents:
    packed = {}
    for name, said in header.weights.items():
        values, positions = (_part(tensors, f"{name}.{part}") for part in _PARTS)
        packed[name] = rebuild(name, said, values, positions)
        packed[name].unpack()
    for name in packed:
        if name in tensors:
            raise ValueError(f"{name!r} is stored packed and plain")
    for name, target in header.aliases.items():
        if name in packed or name in tensors or not (target in packed or target in tensors):
            raise ValueError(f"alias {name!r} of {target!r}: want a new name for a stored one")
        if target in header.aliases:
            raise ValueError(f"alias {name!r} of {target!r}, which is an alias itself")
    for name, target in header.aliases.items():
        if target in packed:
            packed[name] = packed[target]
        else:
            tensors[name] = tensors[target]
    promises = header.promises
    if promises is None:
        promises = {name: weight.pattern for name, weight in packed.items()}
    if unknown := [name for name in promises if name not in packed and name not in tensors]:
        raise ValueError(f"{unknown[0]!r} has a promise, but is not stored")
    return Contents(packed, tensors, dict(header.metadata), dict(promises))


def _part(tensors: dict[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise ValueError(f"{name!r} is missing")
    return tensors.pop(name)


def _check_names(packed: Mapping[str, PackedWeight], others: list[str]) -> None:
    """Every stored name must be unique, the parts of packed weights included."""
    parts = [f"{name}.{part}" for name in packed for part in _PARTS]
    seen: set[str] = set()
    for name in [*packed, *parts, *others]:
        if not isinstance(name, str) or name == "__metadata__":
            raise ValueError(f"{name!r} cannot be the name of a tensor; rename it")
        if name in seen:
            raise ValueError(
                f"the name {name!r} is needed twice (a packed weight W also takes the names "
                "W.values and W.positions); rename one"
            )
        seen.add(name)


def _check_metadata(metadata: Mapping[str, str]) -> None:
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ValueError(f"metadata {key!r}: {value!r:.80}: want text; convert it with str()")


def _replace(path: Path, tensors: dict[str, Tensor], text: str) -> int:
    """Write beside the target and rename, so that no reader ever sees half a file."""
    beside = path.with_name(f".nmsparsity-{secrets.token_hex(8)}.tmp")
    _check_place(path)
    try:
        with open(beside, "xb") as file:
            mode = os.stat(path if path.exists() else file.fileno()).st_mode
        save_file(tensors, beside, {"nmsparsity": text})
        # The library replaces the file by one that only its owner can read.
        os.chmod(beside, stat.S_IMODE(mode))
        with open(beside, "r+b") as written:
            seal(written)
            written.flush()
            os.fsync(written.fileno())
            size = written.seek(0, os.SEEK_END)
        os.replace(beside, path)
    except SafetensorError as error:
        raise OSError(f"{path}: could not be written: {error}") from None
    except OSError as error:
        if error.filename is None:
            raise
        # Not the name of the file beside, which the user has never heard of.
        raise OSError(error.errno, f"could not be written: {error.strerror}", str(path)) from None
    finally:
        beside.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return size


def _check_place(path: Path) -> None:
    """Refuse a path where no file can be; an OSError that says why."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}; make it first")


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut; Windows has no such call."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
