"""A packed weight as entries of a ``state_dict``: plain tensors, as in the packed file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nmsparsity.kernels.problem import Problem
from nmsparsity.packed.header import describe, rebuild
from nmsparsity.packed.weight import PackedWeight

KEYS = ("values", "positions", "format")


def to_state(name: str, weight: PackedWeight) -> dict[str, Tensor]:
    """``name.values``, ``name.positions``, and ``name.format``: what the header of a packed file
    says about the weight, as the bytes of its JSON text.

    >>> from nmsparsity.pattern import Pattern
    >>> list(to_state("fc.weight", PackedWeight.pack(torch.eye(4), Pattern(1, 4))))
    ['fc.weight.values', 'fc.weight.positions', 'fc.weight.format']
    """
    said = json.dumps(describe(weight), sort_keys=True, separators=(",", ":")).encode()
    text = torch.frombuffer(bytearray(said), dtype=torch.uint8)
    parts = (weight.values.clone(), weight.positions.clone(), text)
    return {f"{name}.{key}": part for key, part in zip(KEYS, parts, strict=True)}


def from_state(name: str, state: Mapping[str, Any], problem: Problem) -> PackedWeight:
    """Undo `to_state`, checking everything, for the layer of this problem.

    Raises:
        ValueError: naming the weight, for what does not fit together and for another shape,
            pattern or dtype than the layer has.
    """
    values, positions, text = (state[f"{name}.{key}"].detach().cpu() for key in KEYS)
    try:
        said = json.loads(bytes(text.tolist()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}.format is no JSON text: {error}") from None
    weight = rebuild(name, said, values.contiguous(), positions.contiguous())
    got = (weight.pattern, weight.shape, weight.values.dtype)
    want = (problem.pattern, problem.shape, problem.dtype)
    if got != want:
        raise ValueError(f"{name} is {_words(*got)} in the state_dict, {_words(*want)} here")
    weight.unpack()
    return weight


def _words(pattern: Any, shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{pattern} along {pattern.axis} {list(shape)} {dtype}"
