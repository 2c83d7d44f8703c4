"""What a training method is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from nmsparsity.methods.course import Course
from nmsparsity.registry import Registry, near

methods: Registry[type[Method]] = Registry("method")
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
M = TypeVar("M", bound="type[Method]")


@dataclass(frozen=True)
class Step:
    """What a method is told about the optimizer step that it stands at.

    Attributes:
        count: steps done before this one.
        lr: learning rate of the weight's parameter group.
        grad_scale: the factor the gradients still carry: 1, or the loss scale inside a fused
            optimizer under a ``GradScaler``.
        maximize: whether the optimizer climbs: it takes the gradient with the other sign.
        found_inf: 1 where a fused optimizer under a ``GradScaler`` will skip this step, else 0.
    """

    count: int
    lr: float
    grad_scale: float | Tensor = 1.0
    maximize: bool = False
    found_inf: float | Tensor = 0.0


@dataclass
class Stage:
    """Where one weight stands in its training.

    Attributes:
        n: how many of every ``m`` are kept now; that of the pattern in the end.
        m: size of a group.
        rest: share of their value that pruned weights still have, 0 in the end.
        state: numbers of the method's own about this weight; they travel in the optimizer's state.
        largest: the largest value of every group of a tensor of the weight's shape, at each place
            of its group.
        total: a sum over the weight; where it is spread over processes, they add theirs up.
    """

    n: int
    m: int
    rest: float = 0.0
    state: dict[str, float] = field(default_factory=dict)
    largest: Callable[[Tensor], Tensor] = Tensor.clone
    total: Callable[[Tensor], Tensor] = Tensor.clone


class Method:
    """How a sparse weight is made from a dense one, and what happens around the optimizer step.

    The base class itself is the straight-through estimator; a method overrides what it does
    differently.

    A method has four moments, all of them on plain tensors of one weight, without autograd:
    `score` (which weights to keep), `effective` (what the model computes with), `before_step` and
    `after_step`; `start` when a weight is new. What it decides for all weights at once, such as a
    schedule, is its `course`. The gradient is the one at the sparse weight and belongs to the dense
    weight (straight-through, arXiv 2102.04010); the optimizer updates the dense weight.

    Your own method registers with one decorator:

    >>> @method("noisy_ste")
    ... class NoisySTE(Method):
    ...     def score(self, dense, mask):
    ...         return dense.abs() + 0.01 * torch.rand_like(dense)
    """

    name: ClassVar[str]
    keeps_mask: ClassVar[bool] = False
    """Whether `score` wants the previous mask; without, masks are not stored."""
    shows_mask: ClassVar[bool] = False
    """Whether `before_step` wants the mask that the model computes with."""

    @property
    def is_plain(self) -> bool:
        """Whether masks are by magnitude, W~ = E * W, and no moment lies between update and mask.

        Such weights are projected by the native kernel, all at once.
        """
        kind = type(self)
        return (
            not kind.keeps_mask
            and kind.score is Method.score
            and kind.start is Method.start
            and kind.effective is Method.effective
            and kind.after_step is Method.after_step
        )

    def course(self, optimizer: Optimizer) -> Course:
        """A new course for a training with this optimizer."""
        return Course()

    def start(self, dense: Tensor, mask: Tensor, stage: Stage) -> None:
        """The weight is new, at first or written from outside: fill ``stage.state``."""

    def score(self, dense: Tensor, mask: Tensor | None) -> Tensor:
        """One score per weight: the ``n`` largest of every group are kept.

        Args:
            dense: the dense weight W, ``[out, in, ...]``.
            mask: the mask so far, None at the start, and always None unless `keeps_mask`.
        """
        return dense.abs()

    def effective(self, dense: Tensor, mask: Tensor, stage: Stage) -> Tensor:
        """The sparse weight that the model computes with, W~ = E * W."""
        # dense.where(mask, 0.0) to the bit, and ten times as fast on CPUs.
        bits = _BITS[dense.element_size()]
        ones = mask.view(torch.int8).neg().to(bits)
        return (dense.detach().view(bits) & ones).view(dense.dtype)

    def gradient_decay(self, step: Step) -> float:
        """The factor of ``(1 - mask) * dense`` that is added to the gradient, lambda_w."""
        return 0.0

    def before_step(self, weight: Weight, step: Step) -> None:
        """In place, before the optimizer: ``weight.grad`` and ``weight.dense`` may be changed."""

    def after_step(self, weight: Weight, step: Step) -> None:
        """In place, after the optimizer has updated ``weight.dense`` and before the new mask."""


@dataclass
class Weight:
    """The tensors of one weight as a method sees them, all of the weight's shape.

    Attributes:
        dense: the dense weight W.
        sparse: the sparse weight W~ of the last forward.
        grad: the gradient; None after the step.
        mask: the mask E, for methods with ``keeps_mask`` or ``shows_mask``; None for the latter
            where the model computes with a weight that was written from outside, as it is.
        stage: where the weight stands.
    """

    dense: Tensor
    sparse: Tensor
    grad: Tensor | None
    mask: Tensor | None
    stage: Stage


def method(name: str) -> Callable[[M], M]:
    """A decorator that makes a `Method` known as ``method=name``."""
    keep = methods.register(name)

    def register(kind: M) -> M:
        kind.name = name
        keep(kind)
        return kind

    return register


def build(method: str | Method, options: dict[str, Any]) -> Method:
    """The method of this name with its options, or the ready method that is given.

    Raises:
        ValueError: for an unknown name or option, with what is known.
    """
    if isinstance(method, Method):
        if options:
            raise ValueError(f"options {sorted(options)} beside a ready method: give them to it")
        return method
    if not isinstance(method, str):
        raise ValueError(f"method {method!r}: want a name ({', '.join(methods)}) or a Method")
    kind = methods[method]
    known = [name for name in signature(kind).parameters if name not in ("args", "kwargs")]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(
            f"method {method!r} has no option {unknown[0]!r}{near(unknown[0], known)}; "
            f"its options: {', '.join(known) or 'none'}"
        )
    return kind(**options)
