"""Weights of another training, as a start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name: ``.ckpt`` of Lightning, ``.pt`` or ``.safetensors``.

    Only tensors are read, no code is run (``weights_only=True``).

    Raises:
        ValueError: if there are no tensors in it.
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(str(path))
    content: Any = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if content else {}
    if not tensors:
        raise ValueError(f"{path}: no weights in it; want a state_dict, or a checkpoint with one")
    return tensors


def load_weights(path: Path, model: nn.Module) -> None:
    """Load a checkpoint's weights into a model, in place; every name and shape has to fit.

    The prefix ``model.`` of this project's checkpoints is taken off.

    Raises:
        RuntimeError: naming the weights that are missing, unexpected or of another shape.
    """
    weights = read_weights(path)
    if all(name.startswith("model.") for name in weights):
        weights = {name.removeprefix("model."): value for name, value in weights.items()}
    model.load_state_dict(weights)
