"""The second moments of torch's Adam and AdamW: how much they change, and updates with fixed ones.

Everything stands on the optimizer's own state (``exp_avg``, ``exp_avg_sq``, ``step``), which plain,
foreach and fused steps keep alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from nmsparsity.shards import local_shard, total

Mean = Literal["arithmetic", "geometric"]


@dataclass
class _Before:
    """One parameter before the update: its steps, second moment and, once frozen, its value."""

    parameter: Tensor
    group: dict[str, Any]
    steps: float
    second: Tensor | None
    value: Tensor | None


class SecondMoments:
    """Watches an Adam optimizer's second moments v around each update, of all its parameters.

    Args:
        optimizer: exactly ``torch.optim.Adam`` or ``AdamW``, without amsgrad.

    Raises:
        ValueError: for any other optimizer.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        amsgrad = any(group.get("amsgrad") for group in optimizer.param_groups)
        if type(optimizer) not in (Adam, AdamW) or amsgrad:
            raise ValueError(
                "method 'step' freezes the second moments of Adam: want torch.optim.Adam or AdamW "
                f"without amsgrad, got {type(optimizer).__name__}"
                f"{' with amsgrad' if amsgrad else ''}; take one of those, or method='sr_ste'"
            )
        self._optimizer = optimizer
        self._before: list[_Before] = []

    @property
    def eps(self) -> float:
        """Adam's eps, the largest of all parameter groups."""
        return max(float(group["eps"]) for group in self._optimizer.param_groups)

    @property
    def beta2(self) -> float:
        """Adam's second beta, the largest of all parameter groups."""
        return max(float(group["betas"][1]) for group in self._optimizer.param_groups)

    def note(self, frozen: bool) -> None:
        """Just before an update; once ``frozen``, values and moments are kept to redo it."""
        self._before = [
            self._look(parameter, group, frozen)
            for group in self._optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]

    def _look(self, parameter: Tensor, group: dict[str, Any], frozen: bool) -> _Before:
        state = self._optimizer.state.get(parameter, {})
        known = "exp_avg_sq" in state
        second = local_shard(state["exp_avg_sq"]).clone() if known else None
        value = local_shard(parameter).clone() if frozen else None
        return _Before(parameter, group, float(state["step"]) if known else 0.0, second, value)

    def _updated(self) -> list[tuple[_Before, dict[str, Any]]]:
        """The parameters that the last update moved: a skipped one (loss scaling) moves none."""
        looked = [
            (before, self._optimizer.state.get(before.parameter, {})) for before in self._before
        ]
        return [(b, state) for b, state in looked if float(state.get("step", 0.0)) > b.steps]

    def change(self, mean: Mean) -> float | None:
        """The mean of ``|v_t - v_{t-1}|`` over all elements of all processes, after an update.

        The geometric mean is that of the elements that changed. None where no update was made.
        """
        sums: dict[Any, tuple[Tensor, Tensor]] = {}
        for before, state in self._updated():
            second = local_shard(state["exp_avg_sq"])
            moved = (second if before.second is None else second - before.second).abs()
            found = _sum(moved, mean)
            data = before.parameter.detach()
            place = (getattr(data, "device_mesh", None), getattr(data, "placements", data.device))
            known = sums.get(place)
            sums[place] = (found if known is None else known[0] + found.to(known[0]), data)
        if not sums:
            return None
        added = [total(summed, like).cpu() for summed, like in sums.values()]
        moved_by, count = torch.stack(added).sum(0).tolist()
        average = moved_by / max(count, 1.0)
        return average if mean == "arithmetic" else (math.exp(average) if count else 0.0)

    def freeze(self) -> None:
        """The second moments become v* = v / (1 - beta2^t): they need no correction any more."""
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                state = self._optimizer.state.get(parameter, {})
                if "exp_avg_sq" in state:
                    correction = 1.0 - float(group["betas"][1]) ** float(state["step"])
                    state["exp_avg_sq"].div_(correction)

    def redo(self) -> None:
        """The last update again, with the v* from before it: w <- w - lr * m / (sqrt(v*) + eps).

        Weight decay is the optimizer's: Adam's stands in the gradient, and so in m; AdamW's
        shrinks w first. A parameter that gets its first gradient now is left to Adam this once, and
        its v* is that of this update.
        """
        for before, state in self._updated():
            group, steps = before.group, float(state["step"])
            if before.second is None or before.value is None:
                state["exp_avg_sq"].div_(1.0 - float(group["betas"][1]) ** steps)
                continue
            lr, decay = float(group["lr"]), float(group["weight_decay"])
            local_shard(state["exp_avg_sq"]).copy_(before.second)
            if group.get("decoupled_weight_decay", type(self._optimizer) is AdamW):
                before.value.mul_(1.0 - lr * decay)
            first = local_shard(state["exp_avg"])
            denominator = before.second.sqrt_().add_(float(group["eps"]))
            size = lr / (1.0 - float(group["betas"][0]) ** steps)
            local_shard(before.parameter).copy_(
                before.value.addcdiv_(first, denominator, value=-size)
            )
        self._before = []


def _sum(moved: Tensor, mean: Mean) -> Tensor:
    """The sum of the terms of a mean and their number, ``[2]``, in fp64."""
    if mean == "geometric":
        moved = moved[moved > 0].log()
    count = torch.tensor(float(moved.numel()), dtype=torch.float64, device=moved.device)
    return torch.stack([moved.sum(dtype=torch.float64), count])
