"""What a training method is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from nmsparsity.registry import Registry, near

methods: Registry[type[Method]] = Registry("method")
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


class Method:
    """How a sparse weight is made from a dense one, and what happens around the optimizer step.

    The base class itself is the straight-through estimator; a method overrides what it does
    differently.

    A method has three moments, all of them on plain tensors of one weight, without autograd:
    `score` (which weights to keep), `effective` (what the model computes with), `before_step` and
    `after_step`. The gradient is the one at the sparse weight and belongs to the dense weight
    (straight-through, arXiv 2102.04010); the optimizer updates the dense weight.

    Your own method registers with one decorator:

    >>> @method("noisy_ste")
    ... class NoisySTE(Method):
    ...     def score(self, dense, mask):
    ...         return dense.abs() + 0.01 * torch.rand_like(dense)
    """

    name: ClassVar[str]
    keeps_mask: ClassVar[bool] = False
    """Whether `score` wants the previous mask; without, masks are not stored."""

    def score(self, dense: Tensor, mask: Tensor | None) -> Tensor:
        """One score per weight: the ``n`` largest of every group are kept.

        Args:
            dense: the dense weight W, ``[out, in, ...]``.
            mask: the mask so far, None at the start, and always None unless `keeps_mask`.
        """
        return dense.abs()

    def effective(self, dense: Tensor, mask: Tensor) -> Tensor:
        """The sparse weight that the model computes with, W~ = E * W."""
        return dense.where(mask, 0.0)

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
        mask: the mask E, for methods with ``keeps_mask``.
    """

    dense: Tensor
    sparse: Tensor
    grad: Tensor | None
    mask: Tensor | None


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
