"""What a packed file says about its weights: JSON, checked field by field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nmsparsity.layout import Layout
from nmsparsity.packed.weight import PackedWeight
from nmsparsity.pattern import Pattern

FORMAT = "nmsparsity"
VERSION = 1
NO_CHECKSUM = "0" * 64


@dataclass(frozen=True)
class Header:
    """The JSON document in the header of a packed file.

    Attributes:
        weights: for every packed weight, what is needed to unpack it.
        aliases: a second name of a weight or tensor -> the name it is stored under.
        metadata: the writer's own text by key.
        promises: the patterns that weights, packed or plain, are promised to follow; None: every
            packed one its own.
    """

    weights: Mapping[str, Mapping[str, Any]]
    aliases: Mapping[str, str]
    metadata: Mapping[str, str]
    promises: Mapping[str, Pattern] | None = None

    def to_json(self) -> str:
        """The same text for the same content; the checksum comes first, as 64 zeros."""
        fields: dict[str, Any] = {"aliases": dict(self.aliases), "metadata": dict(self.metadata)}
        if self.promises is not None:
            fields["promises"] = {name: _numbers(its) for name, its in self.promises.items()}
        said = {"format": FORMAT, "version": VERSION, "weights": dict(self.weights), **fields}
        rest = json.dumps(said, sort_keys=True, separators=(",", ":"))
        return f'{{"sha256":"{NO_CHECKSUM}",{rest[1:]}'

    @classmethod
    def from_json(cls, text: str) -> Header:
        """Read the document.

        Raises:
            ValueError: for another format or version, and for a field that is missing or of the
                wrong type.
        """
        try:
            said = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the header is no JSON: {error}") from None
        if _field(said, "format", str, "the header") != FORMAT:
            raise ValueError(f"format {said['format']!r}, want {FORMAT!r}")
        version = _field(said, "version", int, "the header")
        if version != VERSION:
            raise ValueError(
                f"format version {version}; this nmsparsity reads version {VERSION}: "
                "update nmsparsity, or write the file again"
            )
        promises = None
        if "promises" in said:
            promised = _field(said, "promises", dict, "the header")
            promises = {name: _pattern(name, its) for name, its in promised.items()}
        weights, aliases, metadata = (_field(said, key, dict, "the header") for key in _SECTIONS)
        header = cls(weights, aliases, metadata, promises)
        _all_text(header.aliases, "aliases")
        _all_text(header.metadata, "metadata")
        return header


_SECTIONS = ("weights", "aliases", "metadata")


def describe(weight: PackedWeight) -> dict[str, Any]:
    """What the header says about one weight."""
    return {
        **_numbers(weight.pattern),
        "input_dim": weight.layout.input_dim,
        "conv_groups": weight.layout.conv_groups,
        "shape": list(weight.shape),
        "dtype": str(weight.values.dtype).removeprefix("torch."),
        "coding": weight.coding,
    }


def _numbers(pattern: Pattern) -> dict[str, Any]:
    return {"n_kept": pattern.n, "m": pattern.m, "axis": pattern.axis}


def rebuild(name: str, said: Any, values: Tensor, positions: Tensor) -> PackedWeight:
    """The weight that the header describes.

    Raises:
        ValueError: naming the weight, for anything missing, of the wrong type or out of range.
    """
    pattern = _pattern(name, said)
    layout = Layout(*(_field(said, key, int, name) for key in ("input_dim", "conv_groups")))
    text = {key: _field(said, key, str, name) for key in ("dtype", "coding")}
    shape = _field(said, "shape", list, name)
    if any(type(size) is not int for size in shape):
        raise ValueError(f"{name}: shape {shape}: want whole numbers")
    if f"torch.{text['dtype']}" != str(values.dtype):
        raise ValueError(f"{name}: values are {values.dtype}, the header says {text['dtype']!r}")
    return PackedWeight(values, positions, pattern, layout, tuple(shape), text["coding"], name)


def _pattern(name: str, said: Any) -> Pattern:
    n, m = (_field(said, key, int, name) for key in ("n_kept", "m"))
    axis = _field(said, "axis", str, name)
    try:
        return Pattern(n, m, axis)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _field(said: Any, key: str, kind: type, name: str) -> Any:
    if not isinstance(said, dict):
        raise ValueError(f"{name}: want a JSON object, got {said!r:.80}")
    value = said.get(key)
    if type(value) is not kind:
        raise ValueError(f"{name}: {key} is {value!r:.80}, want {_IN_WORDS[kind]}")
    return value


_IN_WORDS = {int: "a whole number", str: "a text", list: "a list", dict: "an object"}


def _all_text(entries: Mapping[str, Any], section: str) -> None:
    for key, value in entries.items():
        if not isinstance(value, str):
            raise ValueError(f"{section}: {key!r} is {value!r:.80}, want a text")
