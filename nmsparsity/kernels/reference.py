"""The kernel in plain torch: the truth that others are tested against, and the fallback."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from nmsparsity.kernels.base import Kernel, kernel
from nmsparsity.kernels.epilogue import finish
from nmsparsity.kernels.problem import Problem, memory_format
from nmsparsity.layout import Layout
from nmsparsity.packed.codings import smallest
from nmsparsity.packed.groups import count
from nmsparsity.packed.weight import PackedWeight


@kernel
class ReferenceKernel(Kernel):
    """Unpacks the weight at every call and multiplies it dense: small in memory, slow, exact.

    >>> import torch
    >>> from nmsparsity.pattern import Pattern
    >>> weight = torch.tensor([[0.0, 1.0, 2.0, 0.0]])
    >>> problem = Problem("linear", (1, 4), Pattern(2, 4), torch.float32)
    >>> reference = ReferenceKernel()
    >>> tiles = reference.tile(problem, PackedWeight.pack(weight, problem.pattern))
    >>> reference.run(problem, tiles, torch.tensor([[1.0, 10.0, 100.0, 1000.0]]))
    tensor([[210.]])
    """

    name = "reference"

    def refuses(self, problem: Problem) -> str | None:
        """Only another device: torch runs everything that can be packed."""
        if problem.device != "cpu":
            return f"it unpacks on the CPU at every call, the weight is on {problem.device}"
        return None

    def tile(self, problem: Problem, weight: PackedWeight) -> tuple[Tensor, ...]:
        """The values, and the positions in the smallest coding."""
        if weight.coding != _coding(problem):
            weight = PackedWeight.pack(weight.unpack(), problem.pattern, name=problem.name)
        return weight.values, weight.positions

    def untile(self, problem: Problem, tiles: Sequence[Tensor]) -> PackedWeight:
        values, positions = (tile.cpu() for tile in tiles)
        pattern, shape = problem.pattern, problem.shape
        return PackedWeight(
            values, positions, pattern, Layout(), shape, _coding(problem), problem.name
        )

    def run(
        self,
        problem: Problem,
        tiles: Sequence[Tensor],
        x: Tensor,
        bias: Tensor | None = None,
        activation: str = "none",
        residual: Tensor | None = None,
    ) -> Tensor:
        weight = self.untile(problem, tiles).unpack().to(x.device)
        # Autocast would compute in another dtype than the weight has, as no other kernel does.
        with torch.autocast(x.device.type, enabled=False):
            return finish(multiply(problem, weight, x, bias), activation, residual)


def multiply(problem: Problem, weight: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """What torch does with the dense weight of a problem; the result keeps the format of ``x``."""
    if problem.kind == "linear":
        return functional.linear(x, weight, bias)
    geometry = (problem.stride, problem.padding, problem.dilation, problem.groups)
    result = functional.conv2d(x, weight, bias, *geometry)
    return result.contiguous(memory_format=memory_format(x))


def _coding(problem: Problem) -> str:
    return smallest(count(problem.shape, problem.pattern, Layout()), problem.pattern).name
