"""Checkpoint: the weights in a file, whoever wrote it, and what the file says about them."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from nmsparsity.packed import PackedWeight, read
from nmsparsity.pattern import Pattern

_SECTIONS = ("state_dict", "model_state_dict", "model")
_PREFIX = "model."
ATTACHMENT = "attachment/"
"""In the metadata of a packed file, before the name of an attached text."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds. Only tensors are read, no code in it is run.

    Attributes:
        path: the file.
        tensors: every weight and buffer by the name it has in the model, dense.
        packed: those that are stored packed.
        patterns: what a training kept each weight to.
        config: the configuration of the training; None for files of others.
        versions: the versions of the modules that wrote them, where torch noted those.
        attachments: texts of a task of ours, by file name: see `Task.attachments`.
    """

    path: Path
    tensors: dict[str, Tensor]
    packed: dict[str, PackedWeight] = field(default_factory=dict)
    patterns: dict[str, Pattern] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    versions: Mapping[str, Any] | None = None
    attachments: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> Checkpoint:
        """Read a checkpoint of Lightning or torch, a safetensors or packed file, or a run folder.

        Of a run folder it is the average of its last epochs, if it made one, else its best epoch.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if no weights are in it.
        """
        path = Path(path)
        if path.is_dir():
            path = _best(path)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such checkpoint")
        return _safetensors(path) if _is_safetensors(path) else _torch(path)

    def load_into(self, model: nn.Module) -> None:
        """Copy the weights into a model of the same architecture, in place.

        Raises:
            ValueError: naming what is missing, unexpected or of another shape; the model is
                unchanged then.
        """
        own = model.state_dict()
        if wrong := list(_differences(self.tensors, own)):
            more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise ValueError(
                f"{self.path}: the weights do not fit this {type(model).__name__}: "
                f"{'; '.join(wrong[:3])}{more}; want the model, classes and channels it has"
            )
        # Checkpoints of before 2018 do not count batches.
        state = OrderedDict({**own, **self.tensors})
        # Modules with versions look for them there.
        versions = getattr(own, "_metadata", None) if self.versions is None else self.versions
        state._metadata = versions  # type: ignore[attr-defined]
        model.load_state_dict(state)


def _differences(tensors: Mapping[str, Tensor], own: Mapping[str, Any]) -> Iterator[str]:
    """What keeps the tensors from fitting a model's own entries, one sentence each."""
    for name, value in own.items():
        if name not in tensors and not name.endswith("num_batches_tracked"):
            yield f"{name!r} is missing in the file"
        elif name in tensors and isinstance(value, Tensor) and value.shape != tensors[name].shape:
            sizes = (list(tensors[name].shape), list(value.shape))
            yield f"{name!r} is {sizes[0]} in the file, {sizes[1]} in the model"
    for name in tensors:
        if name not in own:
            yield f"{name!r} is in the file, but not in the model"


def _best(folder: Path) -> Path:
    """The average of a run folder, else its best epoch."""
    if (folder / "averaged.ckpt").exists():
        return folder / "averaged.ckpt"
    path = folder / "best.ckpt"
    if not path.exists():
        if (folder / "last.ckpt").exists():
            raise FileNotFoundError(
                f"{folder}: a run without a validation so far, and so without a best.ckpt; give "
                f"{folder / 'last.ckpt'}"
            )
        raise FileNotFoundError(
            f"{folder}: a folder without best.ckpt: no run, or one whose first epoch has not "
            "ended; give a run folder or a file"
        )
    return path


def _is_safetensors(path: Path) -> bool:
    """By its content, whatever the name: after the length of the header comes JSON."""
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _safetensors(path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(path, framework="pt") as file:
            ours = "nmsparsity" in (file.metadata() or {})
        if not ours:
            return Checkpoint(path, load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path}: no safetensors file, or a damaged one ({error})") from None
    contents = read(path)
    dense = {name: weight.unpack() for name, weight in contents.packed.items()}
    return Checkpoint(
        path,
        {**contents.tensors, **dense},
        contents.packed,
        contents.promises,
        _config(contents.metadata.get("config")),
        attachments={
            name.removeprefix(ATTACHMENT): text
            for name, text in contents.metadata.items()
            if name.startswith(ATTACHMENT)
        },
    )


def _torch(path: Path) -> Checkpoint:
    content = _unpickle(path)
    if isinstance(content, Tensor) or not isinstance(content, Mapping):
        raise ValueError(f"{path}: want a state_dict or a checkpoint with one, got {type(content)}")
    sections = (content[key] for key in _SECTIONS if isinstance(content.get(key), Mapping))
    state = next(sections, content)
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path}: no weights in it; its keys: {', '.join(map(str, content))}")
    versions = getattr(state, "_metadata", None)
    config = _config(content.get("config"))
    if config is None or state is not content.get("state_dict"):
        return Checkpoint(path, tensors, versions=versions)
    return Checkpoint(
        path,
        {name.removeprefix(_PREFIX): value for name, value in tensors.items()},
        patterns=dict(_patterns(content.get("callbacks", {}))),
        config=config,
        versions=None if versions is None else _of_inner(versions),
        attachments=_texts(content.get("attachments")),
    )


def _config(text: object) -> dict[str, Any] | None:
    """The configuration that a training of ours leaves in a file; None for what others leave."""
    if not isinstance(text, str):
        return None
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    return config if isinstance(config, dict) and isinstance(config.get("task"), dict) else None


def _texts(content: object) -> dict[str, str]:
    return {
        name: text
        for name, text in (content.items() if isinstance(content, Mapping) else ())
        if isinstance(name, str) and isinstance(text, str)
    }


def _of_inner(versions: Mapping[str, Any]) -> dict[str, Any]:
    """The versions of the network inside the task."""
    inner = _PREFIX.removesuffix(".")
    within = {name: its for name, its in versions.items() if f"{name}.".startswith(_PREFIX)}
    return {name.removeprefix(inner).removeprefix("."): its for name, its in within.items()}


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        # Not torch's own words, which advise to run the code in the file.
        if "Unsupported operand" in str(error):
            raise ValueError(
                f"{path}: no checkpoint that torch can read, or a damaged one: copy or write it "
                "again"
            ) from None
        found = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"{path}: it holds other things than tensors{f' ({found[1]})' if found else ''}, which "
            "are not loaded since they could run code; save the model's state_dict()"
        ) from None
    except (RuntimeError, KeyError, EOFError, IndexError, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        said = str(error).split(". ")[0].splitlines()
        raise ValueError(
            f"{path}: no checkpoint that torch can read, or one cut short: copy or write it again "
            f"({': '.join([type(error).__name__, *said[:1]])})"
        ) from None


def _patterns(callbacks: Mapping[str, Any]) -> list[tuple[str, Pattern]]:
    """What the SparsityCallback noted."""
    noted: Mapping[str, Any] = next(
        (state for key, state in callbacks.items() if "SparsityCallback" in key), {}
    )
    return [
        (name.removeprefix(_PREFIX), Pattern.parse(pattern, axis))
        for name, (pattern, axis) in noted.get("patterns", {}).items()
    ]
