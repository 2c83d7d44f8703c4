"""Linear layers that stay dense: from which order of the weight torch runs them fastest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nmsparsity.kernels.choices import Choices
from nmsparsity.kernels.timing import Others, medians
from nmsparsity.layers.prepacked import PrepackedLinear, orders

_WORTH = 0.9  # it costs a second copy of the weight


@dataclass(frozen=True)
class Prepacked:
    """A layer that stands for a dense one, and what was measured."""

    layer: PrepackedLinear
    ms_plain: float
    ms: float

    @property
    def said(self) -> str:
        """For the report."""
        return (
            f"a second copy of it, {self.layer.order}: {self.ms:.3g} ms for {self.ms_plain:.3g} ms"
        )


def prepacked(
    module: nn.Module,
    calls: Counter[tuple[tuple[int, ...], bool]],
    choices: Choices,
    others: Others,
) -> Prepacked | None:
    """The layer in the fastest order of its weight, for these calls; None where the plain one is.

    Args:
        module: any; only linear layers in fp32 on a CPU have other orders.
        calls: how often it is called with which shape.
        choices: what was measured before.
        others: what takes the caches between two calls.
    """
    if not can_be_prepacked(module):
        return None
    assert isinstance(module, nn.Linear)
    ways: dict[str, nn.Linear] = {"dense": module}
    ways.update((order, PrepackedLinear(module, order)) for order in orders())
    shape, biased = list(module.weight.shape), module.bias is not None
    seen = sorted((list(shape), count) for (shape, _), count in calls.items())
    question = ["dense linear", shape, biased, list(ways), seen, others.nbytes]
    times = choices.get(question)
    if times is None:
        times = _measure(ways, calls, others)
        choices.put(question, times)
    best = min(times, key=lambda name: times[name])
    layer = ways[best]
    if not isinstance(layer, PrepackedLinear) or times[best] > _WORTH * times["dense"]:
        return None
    return Prepacked(layer, times["dense"], times[best])


def can_be_prepacked(module: nn.Module) -> bool:
    """Whether it is nothing but a linear layer in fp32 on a CPU: without hooks, buffers, parts."""
    if type(module) is not nn.Linear or "forward" in vars(module) or _is_extended(module):
        return False
    weight = module._parameters.get("weight")
    return (
        type(weight) is nn.Parameter
        and weight.dtype is torch.float32
        and weight.device.type == "cpu"
        and weight.numel() > 0
    )


def _is_extended(module: nn.Module) -> bool:
    own = vars(module).items()
    hooks = any("_hooks" in name and isinstance(value, dict) and value for name, value in own)
    return hooks or bool(module._buffers or module._modules)


def _measure(
    ways: dict[str, nn.Linear], calls: Counter[tuple[tuple[int, ...], bool]], others: Others
) -> dict[str, float]:
    """Milliseconds by way, over all the calls of one run."""
    total = dict.fromkeys(ways, 0.0)
    for (shape, _), count in calls.items():
        x = torch.ones(shape)
        bare: dict[str, Callable[[], Tensor]] = {
            name: lambda way=way, x=x: way.forward(x)  # type: ignore[misc]
            for name, way in ways.items()
        }
        for name, ms in medians(bare, lambda x=x: others.run(x)).items():  # type: ignore[misc]
            total[name] += ms * count
    return total
