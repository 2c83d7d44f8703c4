"""What a kernel is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from nmsparsity.kernels.problem import Problem
from nmsparsity.packed.weight import PackedWeight
from nmsparsity.registry import Registry

KERNELS: Registry[Kernel] = Registry("kernel")
K = TypeVar("K", bound="Kernel")


class Kernel(ABC):
    """One way to multiply by a packed weight; without state, one object for all layers.

    A kernel keeps a weight in its own run-time form, its *tiles*: a few plain tensors, made once
    by `tile` and read back bit by bit by `untile`. What it cannot run it refuses in a sentence;
    it is never replaced silently.

    Attributes:
        name: what it is registered as.
        priority: of two kernels that can run a layer, the one with the higher is asked first.
    """

    name: ClassVar[str]
    priority: ClassVar[int] = 0

    @abstractmethod
    def refuses(self, problem: Problem) -> str | None:
        """Why this machine cannot run the problem by this kernel; None when it can."""

    @abstractmethod
    def tile(self, problem: Problem, weight: PackedWeight) -> tuple[Tensor, ...]:
        """The weight in run-time form: plain tensors, on the CPU or on the problem's device."""

    @abstractmethod
    def untile(self, problem: Problem, tiles: Sequence[Tensor]) -> PackedWeight:
        """Undo `tile`: the same values and positions, bit by bit."""

    @abstractmethod
    def run(
        self,
        problem: Problem,
        tiles: Sequence[Tensor],
        x: Tensor,
        bias: Tensor | None = None,
        activation: str = "none",
        residual: Tensor | None = None,
    ) -> Tensor:
        """``activation(x @ weight + bias + residual)``, a new tensor.

        Args:
            problem: what the tiles were made for.
            tiles: from `tile`.
            x: ``[..., in]``, contiguous, or ``[N, in, height, width]``, contiguous or
                ``channels_last``; the result keeps its format.
            bias: ``[out]``.
            activation: a key of `nmsparsity.kernels.epilogue.ACTIVATIONS`.
            residual: of the shape, dtype and format of the result.
        """

    def prepare(self, problem: Problem) -> Callable[..., Tensor]:
        """`run` for many calls of one layer: the same but for the first argument.

        It refuses an input that does not fit by a ValueError that names the layer. What it keeps
        between calls must be safe to use from several threads.
        """

        def call(tiles: Sequence[Tensor], x: Tensor, *rest: Any) -> Tensor:
            problem.output_shape(x.shape)
            return self.run(problem, tiles, x, *rest)

        return call


def kernel(cls: type[K]) -> type[K]:
    """A decorator that registers the one object of a kernel class under its name."""
    KERNELS.register(cls.name)(cls())
    return cls
