"""Gradual: from dense to N:M over a schedule."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor
from torch.optim import Optimizer

from nmsparsity.methods.base import Method, Stage, Step, Weight, method
from nmsparsity.methods.course import Course

Form = Literal["mask", "count"]
Curve = Literal["linear", "exponential"]
_LEFT_AT_THE_END = 0.01


@method("gradual")
class Gradual(Method):
    """Dense at first; N:M is reached at the end of a schedule. For high sparsity, such as 1:16.

    Two forms (arXiv 2209.07617, 2402.04744, there MdGf and SdGf):

    - ``"mask"``: W~ = (E + rest * (1 - E)) * W, where rest falls from 1 to 0. The gradient of a
      pruned weight is multiplied by rest, too, as the chain rule has it: in the end pruned weights
      learn nothing, and masks settle. (The code of the second paper gives it unchanged.)
    - ``"count"``: a hard mask that keeps M - 1, M / 2, M / 4, ..., N of every M, for equal times;
      the gradient goes to the dense weight unmasked, as with ``ste``.

    Until the schedule's end the weights are *not* N:M, and reports say so.

    Args:
        form: ``"mask"`` or ``"count"``.
        curve: of ``rest``: ``"linear"`` (default) or ``"exponential"`` (to 1 %, then 0).
        start_steps: optimizer steps that are dense.
        steps: optimizer steps from there to N:M; default: up to half of the training.
        total_steps: optimizer steps of the whole training, for that default; None where
            `Sparsifier.plan` tells.

    >>> from torch.optim import SGD
    >>> course = Gradual("count", steps=100).course(SGD([Tensor(1)], 0.1))
    >>> [course.kept(1, 8, count) for count in (0, 33, 50, 99, 100)]
    [7, 7, 4, 2, 1]
    """

    shows_mask = True

    def __init__(
        self,
        form: Form = "mask",
        curve: Curve | None = None,
        start_steps: int = 0,
        steps: int | None = None,
        total_steps: int | None = None,
    ) -> None:
        if form not in get_args(Form):
            raise ValueError(f"form {form!r}: want 'mask' or 'count'")
        if curve is not None and (form != "mask" or curve not in get_args(Curve)):
            raise ValueError(
                f"curve {curve!r} of form {form!r}: want 'linear' or 'exponential', of form 'mask'"
            )
        if start_steps < 0 or (steps is not None and steps < 1):
            raise ValueError(
                f"start_steps {start_steps}, steps {steps}: want 0 or more dense steps, then 1 or "
                "more to reach the pattern"
            )
        self.form, self.curve = form, curve or "linear"
        self.start_steps, self.steps, self.total_steps = start_steps, steps, total_steps

    @property
    def is_plain(self) -> bool:
        return self.form == "count"

    def course(self, optimizer: Optimizer) -> Course:
        return _Schedule(self)

    def effective(self, dense: Tensor, mask: Tensor, stage: Stage) -> Tensor:
        return dense.where(mask, dense * stage.rest if stage.rest else 0.0)

    def before_step(self, weight: Weight, step: Step) -> None:
        """The chain rule: what counts little learns little."""
        if self.form == "mask" and weight.mask is not None:
            assert weight.grad is not None
            weight.grad.copy_(weight.grad.where(weight.mask, weight.grad * weight.stage.rest))


class _Schedule(Course):
    """How far a gradual training has come."""

    def __init__(self, gradual: Gradual) -> None:
        super().__init__("gradual", gradual.total_steps)
        self._gradual = gradual

    def check(self) -> None:
        if self._gradual.steps is None:
            self._need_total()

    @property
    def end(self) -> int | None:
        """The step from which on the weights are N:M; None where that is not known yet."""
        start, steps = self._gradual.start_steps, self._gradual.steps
        if steps is not None:
            return start + steps
        return None if self.total_steps is None else max(start + 1, self.total_steps // 2)

    def _share(self, count: int) -> float:
        """How much of the schedule is done: below 0 in the dense steps, 1 or more at the end."""
        start, end = self._gradual.start_steps, self.end
        if end is None:
            return min(0.0, float(count - start))
        return (count - start) / (end - start)

    def kept(self, n: int, m: int, count: int) -> int:
        share = self._share(count)
        if self._gradual.form == "mask" or share >= 1:
            return n
        if share < 0:
            return m
        levels = _levels(n, m)
        return levels[int(share * len(levels))] if levels else n

    def rest(self, count: int) -> float:
        share = self._share(count)
        if self._gradual.form == "count" or share >= 1:
            return 0.0
        if share <= 0:
            return 1.0
        exponential = self._gradual.curve == "exponential"
        return float(_LEFT_AT_THE_END**share) if exponential else 1.0 - share

    def pending(self, n: int, m: int, count: int) -> str:
        kept, rest, end = self.kept(n, m, count), self.rest(count), self.end
        if kept == n and not rest:
            return ""
        now = f"pruned weights count {rest:.3g}" if rest else f"{kept}:{m}"
        when = "half of the training" if end is None else f"step {end}"
        return f"method 'gradual' is at {now} after {count} steps; {n}:{m} from {when} on"


def _levels(n: int, m: int) -> list[int]:
    """What is kept of every m on the way to n, from m - 1 down by halves."""
    levels = [m - 1]
    size = m // 2
    while size > 0:
        levels.append(size)
        size //= 2
    return sorted({level for level in levels if n < level < m}, reverse=True)
