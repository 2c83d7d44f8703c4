"""How a model's convolutions lay out activations: both ways tried on the whole model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from nmsparsity.compression.observe import run
from nmsparsity.kernels.timing import medians

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def convolves(model: nn.Module) -> bool:
    """Whether a two-dimensional convolution is there, which could lay out its result either way."""
    return any(isinstance(module, nn.Conv2d) for module in model.modules())


def faster(
    make: Callable[[torch.memory_format], nn.Module], inputs: Any
) -> tuple[nn.Module, dict[str, float]]:
    """The faster of two models, and the milliseconds of both on these inputs.

    Dense convolutions whose weight is ``channels_last`` hand on activations in that format, and
    packed layers keep the format that they are given: that of its weights is a model's choice.

    Args:
        make: the model made for one format.
        inputs: as of `nmsparsity.compress`.
    """
    models = {name: make(form) for name, form in FORMATS.items()}
    times = medians(_calls(models, inputs))
    return models[min(times, key=lambda name: times[name])], times


def _calls(models: Mapping[str, nn.Module], inputs: Any) -> dict[str, Callable[[], object]]:
    return {name: lambda m=model: run(m, inputs) for name, model in models.items()}  # type: ignore[misc]
