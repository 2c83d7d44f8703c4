"""STEP: dense Adam until its second moments have settled, then masks under frozen ones."""

from __future__ import annotations

import math
from typing import Any, get_args

import torch
from torch.optim import Optimizer

from nmsparsity.methods.base import Method, Step, method
from nmsparsity.methods.course import Course
from nmsparsity.second_moments import Mean, SecondMoments


@method("step")
class STEP(Method):
    """For Adam and AdamW: learn the second moments v dense, freeze them, then learn the masks.

    Under changing masks Adam's v is a poor estimate of the gradient's variance. STEP (arXiv
    2302.01172) therefore trains in two phases:

    1. plain dense Adam. After every step Z_t = mean |v_t - v_{t-1}| over all parameters of the
       optimizer. AutoSwitch ends the phase when the mean Z of the last floor(1 / (1 - beta2)) steps
       is below ``threshold``, not before ``earliest`` and at ``latest`` of the whole training.
    2. N:M masks and the straight-through gradient (with an SR-STE term, if ``decay``), and
       w <- w - lr * m / (sqrt(v*) + eps), where v* is the bias-corrected v of the switch, for all
       parameters of the optimizer.

    In phase 1 the network is *dense*, and reports say so. Phase 2 costs a copy of all parameters
    and second moments, for the time of a step.

    Args:
        total_steps: optimizer steps of the whole training; None where `Sparsifier.plan` tells.
        threshold: for the mean of Z; default Adam's eps.
        mean: ``"arithmetic"``, or ``"geometric"``, less swayed by few large elements: that of the
            elements that changed.
        earliest, latest: shares of the whole training.
        decay: lambda_w in phase 2, through the gradient; 0 is STE.
    """

    def __init__(
        self,
        total_steps: int | None = None,
        threshold: float | None = None,
        mean: Mean = "arithmetic",
        earliest: float = 0.1,
        latest: float = 0.5,
        decay: float = 0.0,
    ) -> None:
        if mean not in get_args(Mean):
            raise ValueError(f"mean {mean!r}: want 'arithmetic' or 'geometric'")
        if not 0 <= earliest <= latest <= 1:
            raise ValueError(
                f"earliest {earliest}, latest {latest}: want shares of the training, "
                "0 <= earliest <= latest <= 1"
            )
        if not (math.isfinite(decay) and decay >= 0):
            raise ValueError(f"decay {decay!r}: want a number, 0 or more")
        if threshold is not None and not threshold >= 0:
            raise ValueError(f"threshold {threshold!r}: want a number, 0 or more, or None")
        self.total_steps, self.threshold, self.mean = total_steps, threshold, mean
        self.earliest, self.latest, self.decay = earliest, latest, decay

    def course(self, optimizer: Optimizer) -> Course:
        return AutoSwitch(self, optimizer)

    def gradient_decay(self, step: Step) -> float:
        return self.decay


class AutoSwitch(Course):
    """The two phases of STEP, and when one ends.

    Attributes:
        switched_at: optimizer steps done at the switch; None in phase 1.
        changes: Z of the last steps of phase 1.
    """

    def __init__(self, step: STEP, optimizer: Optimizer) -> None:
        super().__init__("step", step.total_steps)
        self._step = step
        self._moments = SecondMoments(optimizer)
        self.switched_at: int | None = None
        self.changes: list[float] = []

    @property
    def window(self) -> int:
        """Steps that the mean of Z is taken over, floor(1 / (1 - beta2))."""
        beta2 = self._moments.beta2
        # 1 / (1 - 0.999) is 999.9999999999991 in floating point.
        return max(1, math.floor(1.0 / (1.0 - beta2) + 1e-6)) if beta2 < 1 else 1

    def check(self) -> None:
        self._need_total()

    def kept(self, n: int, m: int, count: int) -> int:
        return m if self.switched_at is None else n

    def pending(self, n: int, m: int, count: int) -> str:
        if self.switched_at is not None or n == m:
            return ""
        total = self.total_steps
        when = "at a share" if total is None else f"at step {math.ceil(self._step.latest * total)}"
        share = f" ({self._step.latest:.0%} of the training)"
        return (
            f"method 'step' is in its dense phase after {count} steps; {n}:{m} from the switch on, "
            f"{when}{share} at the latest"
        )

    def before_update(self) -> None:
        self._moments.note(frozen=self.switched_at is not None)

    def after_update(self, count: int) -> None:
        if self.switched_at is not None:
            self._moments.redo()
            return
        change = self._moments.change(self._step.mean)
        if change is None:
            return
        self.changes = [*self.changes, change][-self.window :]
        if self._is_time(count + 1):
            self.switched_at = count + 1
            self.changes = []
            self._moments.freeze()

    def _is_time(self, done: int) -> bool:
        total = self._need_total()
        if done < self._step.earliest * total:
            return False
        threshold = self._moments.eps if self._step.threshold is None else self._step.threshold
        return done >= self._step.latest * total or _mean(self.changes) < threshold

    def state(self) -> dict[str, Any]:
        switched = -1 if self.switched_at is None else self.switched_at
        # One size at all times: distributed checkpoints load into the memory of the same entry.
        changes = torch.full((self.window,), -1.0, dtype=torch.float64)
        changes[: len(self.changes)] = torch.tensor(self.changes, dtype=torch.float64)
        return {**super().state(), "switched_at": switched, "changes": changes}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        switched = int(state.get("switched_at", -1))
        self.switched_at = None if switched < 0 else switched
        known = state.get("changes", torch.empty(0))
        self.changes = [change for change in known.tolist() if change >= 0]


def _mean(changes: list[float]) -> float:
    return math.fsum(changes) / len(changes)
