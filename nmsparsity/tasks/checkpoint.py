"""Checkpoint: the weights in a file, whoever wrote it, and what the file says about them."""

from __future__ import annotations

from collections.abc import Mapping
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


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds. Only tensors are read, no code in it is run.

    Attributes:
        path: the file.
        tensors: every weight and buffer by the name it has in the model, dense.
        packed: those that are stored packed.
        patterns: what a training kept each weight to.
        config: the configuration of the training; None for files of others.
    """

    path: Path
    tensors: dict[str, Tensor]
    packed: dict[str, PackedWeight] = field(default_factory=dict)
    patterns: dict[str, Pattern] = field(default_factory=dict)
    config: dict[str, Any] | None = None

    @classmethod
    def read(cls, path: str | Path) -> Checkpoint:
        """Read a checkpoint of Lightning or torch, a safetensors or packed file, or a run folder.

        Of a run folder it is the best epoch.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if no weights are in it.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "best.ckpt"
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such checkpoint")
        return _safetensors(path) if path.suffix == ".safetensors" else _torch(path)

    def load_into(self, model: nn.Module) -> None:
        """Copy the weights into a model of the same architecture, in place.

        Raises:
            RuntimeError: naming what is missing, unexpected or of another shape.
        """
        model.load_state_dict(self.tensors)


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
    patterns = {name: weight.pattern for name, weight in contents.packed.items()}
    text = contents.metadata.get("config")
    return Checkpoint(
        path,
        {**contents.tensors, **dense},
        contents.packed,
        patterns,
        None if text is None else yaml.safe_load(text),
    )


def _torch(path: Path) -> Checkpoint:
    content = _unpickle(path)
    if isinstance(content, Tensor) or not isinstance(content, Mapping):
        raise ValueError(f"{path}: want a state_dict or a checkpoint with one, got {type(content)}")
    sections = (content[key] for key in _SECTIONS if isinstance(content.get(key), Mapping))
    state = next(sections, content)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path}: no weights in it; its keys: {', '.join(map(str, content))}")
    if "config" not in content:
        return Checkpoint(path, tensors)
    return Checkpoint(
        path,
        {name.removeprefix(_PREFIX): value for name, value in tensors.items()},
        patterns=dict(_patterns(content.get("callbacks", {}))),
        config=yaml.safe_load(content["config"]),
    )


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            f"{path}: it holds other things than tensors, which are not loaded since they could "
            f"run code; save the model's state_dict() ({str(error).splitlines()[0]})"
        ) from None
    except (RuntimeError, KeyError, EOFError, IndexError) as error:
        raise ValueError(f"{path}: no checkpoint that torch can read ({error!r})") from None


def _patterns(callbacks: Mapping[str, Any]) -> list[tuple[str, Pattern]]:
    """What the SparsityCallback noted."""
    noted: Mapping[str, Any] = next(
        (state for key, state in callbacks.items() if "SparsityCallback" in key), {}
    )
    return [
        (name.removeprefix(_PREFIX), Pattern.parse(pattern, axis))
        for name, (pattern, axis) in noted.get("patterns", {}).items()
    ]
