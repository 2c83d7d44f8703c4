"""SR-STE: the straight-through estimator with a decay on the pruned weights."""

import math
from collections.abc import Callable
from typing import Literal, get_args

from nmsparsity.methods.base import Method, Step, Weight, method

Form = Literal["gradient", "decoupled"]


@method("sr_ste")
class SRSTE(Method):
    """Sparse-refined STE: pruned weights are pulled to zero, so that masks settle.

    W <- W - lr * (g(W~) + decay * (1 - E) * W), arXiv 2102.04010, equation 9. The term is added
    once per optimizer step, after accumulation, all-reduce, unscaling and clipping, so that its
    strength depends on none of them.

    Args:
        decay: lambda_w, 0 or more: a number or a function of the step count. The paper's 2e-4 was
            found with SGD; the released code applied it once per GPU, 1.6e-3 on eight.
        form: ``"gradient"`` adds the term to the gradient: momentum and Adam's scale act on it.
            ``"decoupled"`` takes ``lr * decay * (1 - E) * W`` from the dense weight, as AdamW does
            with weight decay.
        warmup_steps: the decay rises linearly from 0 over so many steps (arXiv 2407.20584).

    >>> SRSTE(decay=1e-3, warmup_steps=10).decay_at(4)
    0.0004
    """

    def __init__(
        self,
        decay: float | Callable[[int], float] = 2e-4,
        form: Form = "gradient",
        warmup_steps: int = 0,
    ) -> None:
        if form not in get_args(Form):
            raise ValueError(f"form {form!r}: want 'gradient' or 'decoupled'")
        if not callable(decay):
            _check_decay(decay)
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps {warmup_steps}: want 0 or more")
        self.decay, self.form, self.warmup_steps = decay, form, warmup_steps

    def decay_at(self, count: int) -> float:
        """lambda_w after so many optimizer steps."""
        decay = _check_decay(self.decay(count)) if callable(self.decay) else self.decay
        return decay * min(1.0, count / self.warmup_steps) if self.warmup_steps else decay

    def gradient_decay(self, step: Step) -> float:
        return self.decay_at(step.count) if self.form == "gradient" else 0.0

    def before_step(self, weight: Weight, step: Step) -> None:
        if self.form == "decoupled":
            strength = step.lr * self.decay_at(step.count)
            weight.dense.sub_((weight.dense - weight.sparse) * (strength * (1 - step.found_inf)))


def _check_decay(decay: float) -> float:
    """Below 0 it would push pruned weights up: masks change more than without it."""
    is_number = isinstance(decay, (int, float)) and not isinstance(decay, bool)
    if not is_number or not math.isfinite(decay) or decay < 0:
        raise ValueError(
            f"decay {decay!r}: want a number, 0 or more, or a function of the step count"
        )
    return decay
