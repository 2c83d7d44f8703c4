"""The kinds of tasks of ``nmsparsity train``: one file each, imported when asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import yaml

from nmsparsity.registry import near
from nmsparsity.tasks.kinds.base import Kind
from nmsparsity.tasks.needs import need


@dataclass(frozen=True)
class Listed:
    """What is said about a kind before it is imported.

    Attributes:
        about: for the list of kinds.
        packages: it cannot do without, beside those of every training.
        extra: the extra of this project that brings them.
    """

    about: str
    packages: tuple[str, ...] = ()
    extra: str = "train"


DEFAULT = "classification"
KINDS: dict[str, Listed] = {
    "classification": Listed("images with one label each"),
    "detection": Listed("boxes of objects on images", ("faster_coco_eval",), "detection"),
    "segmentation": Listed("a mask for every object", ("faster_coco_eval",), "detection"),
    "translation": Listed(
        "sentences of one language in another",
        ("transformers", "tokenizers", "sacrebleu"),
        "translation",
    ),
}
"""By name; each is the ``KIND`` of ``nmsparsity.tasks.kinds.<name>``."""


def kind(name: str) -> Kind:
    """The kind of this name.

    Raises:
        ValueError: if there is none, or a package it needs is not installed.
    """
    if name not in KINDS:
        known = ", ".join(KINDS)
        raise ValueError(f"unknown kind {name!r}; known: {known}{near(name, KINDS)}")
    need(*KINDS[name].packages, extra=KINDS[name].extra)
    found: Kind = import_module(f"{__name__}.{name}").KIND
    return found


def named_in(words: Sequence[str]) -> str:
    """The kind a command line asks for: ``--kind``, else ``kind:`` in its last recipe that has one.

    It has to be known before the command line can be parsed: fields differ from kind to kind.

    >>> named_in(["--config", "{kind: translation}", "--seed", "3"])
    'translation'
    >>> named_in([])
    'classification'
    """
    if given := list(_values(words, "--kind")):
        return given[-1]
    found = [name for recipe in _values(words, "--config") for name in _kind_of(recipe)]
    return found[-1] if found else DEFAULT


def _values(words: Sequence[str], option: str) -> Iterable[str]:
    """Of ``--option value`` and ``--option=value``, in order."""
    for place, word in enumerate(words):
        if word == option:
            yield from words[place + 1 : place + 2]
        elif word.startswith(f"{option}="):
            yield word.removeprefix(f"{option}=")


def _kind_of(recipe: str) -> list[str]:
    """What a recipe says; whatever is wrong with it, the parser will tell."""
    try:
        text = Path(recipe).read_text() if Path(recipe).is_file() else recipe
        content = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return []
    return [str(content["kind"])] if isinstance(content, dict) and "kind" in content else []


def listed() -> str:
    """The kinds, one a line."""
    return "\n".join(f"  {name:16s}{its.about}" for name, its in KINDS.items())
