"""A course: what a method decides for all weights at once, step by step."""

from __future__ import annotations

from typing import Any


class Course:
    """How one training under a method runs; `Method.course` makes one for every sparsifier.

    The base class is the course of a method that is N:M from the first step on. What `state` gives
    travels in ``optimizer.state_dict()``.

    Args:
        method: name of the method, for messages.
        total_steps: optimizer steps of the whole training; None where `plan` will tell.
    """

    def __init__(self, method: str = "", total_steps: int | None = None) -> None:
        if total_steps is not None and total_steps < 1:
            raise ValueError(f"total_steps {total_steps}: want 1 or more optimizer steps")
        self.method, self.total_steps = method, total_steps
        self._given = total_steps is not None

    def plan(self, total_steps: int) -> None:
        """The training will take so many optimizer steps; an option of the method wins."""
        if not self._given:
            self.total_steps = total_steps

    def check(self) -> None:
        """Before every step: whether all is known that the course needs."""

    def kept(self, n: int, m: int, count: int) -> int:
        """How many of every ``m`` are kept after ``count`` optimizer steps; ``n`` in the end."""
        return n

    def rest(self, count: int) -> float:
        """The share of their value that pruned weights still have after so many steps."""
        return 0.0

    def pending(self, n: int, m: int, count: int) -> str:
        """Why the weights are not ``n:m`` after so many steps; empty when they are."""
        return ""

    def before_update(self) -> None:
        """The gradients are final, the parameters hold the dense weights."""

    def after_update(self, count: int) -> None:
        """The optimizer has updated the dense weights, which the parameters still hold."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to go on: numbers, and tensors that keep their shape."""
        return {} if self.total_steps is None else {"total_steps": self.total_steps}

    def load(self, state: dict[str, Any]) -> None:
        """Restore `state`; unknown entries are of another method and are left alone."""
        if not self._given and "total_steps" in state:
            self.total_steps = int(state["total_steps"])

    def _need_total(self) -> int:
        if self.total_steps is None:
            raise ValueError(
                f"method {self.method!r} needs to know how long the training is: give "
                "sparsify(total_steps=...) or call sparsifier.plan(total_steps) before the first "
                "step (SparsityCallback does)"
            )
        return self.total_steps
