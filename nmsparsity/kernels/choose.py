"""Which kernel runs a problem here: asked, or measured against dense torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from nmsparsity.kernels.base import KERNELS, Kernel
from nmsparsity.kernels.choices import Choices
from nmsparsity.kernels.epilogue import finish
from nmsparsity.kernels.problem import Problem
from nmsparsity.kernels.reference import multiply
from nmsparsity.kernels.timing import Others, medians
from nmsparsity.packed.weight import PackedWeight

_WORTH = 0.95  # nearer to dense than this is noise


@dataclass(frozen=True)
class Example:
    """One call of a layer: its input, what follows it, and how often it happens in a run."""

    shape: tuple[int, ...]
    channels_last: bool = False
    activation: str = "none"
    residual: bool = False
    calls: int = 1

    def input(self, problem: Problem) -> Tensor:
        """An input of this shape and format."""
        x = torch.ones(self.shape, dtype=problem.dtype, device=problem.device)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x


@dataclass(frozen=True)
class Choice:
    """The kernel chosen, or None where a layer stays dense; and why.

    Attributes:
        kernel: the name of the kernel.
        ms_dense, ms_packed: milliseconds a run of the model, where they were measured.
        reason: in a sentence, where it stays dense.
    """

    kernel: str | None
    ms_dense: float | None = None
    ms_packed: float | None = None
    reason: str = ""


def choose(problem: Problem, backend: str = "auto") -> Choice:
    """The first kernel, by priority, that does not refuse; or the one given by name.

    >>> from nmsparsity.pattern import Pattern
    >>> problem = Problem("linear", (8, 16), Pattern(2, 4), torch.float32)
    >>> choose(problem, "reference")
    Choice(kernel='reference', ms_dense=None, ms_packed=None, reason='')

    Raises:
        ValueError: for a backend that is neither ``"auto"`` nor a registered kernel.
    """
    asked = by_priority() if backend == "auto" else [KERNELS[backend]]
    refusals = {kernel.name: kernel.refuses(problem) for kernel in asked}
    able = next((name for name, refusal in refusals.items() if refusal is None), None)
    said = "; ".join(f"kernel {name!r} refuses it: {why}" for name, why in refusals.items())
    return Choice(able, reason="" if able is not None else said)


def by_priority() -> list[Kernel]:
    """All registered kernels, the highest priority first."""
    return sorted((KERNELS[name] for name in KERNELS), key=lambda kernel: -kernel.priority)


@torch.no_grad()
def fastest(
    problem: Problem,
    weight: PackedWeight,
    bias: Tensor | None,
    examples: Sequence[Example],
    choices: Choices,
    others: Others | None = None,
) -> Choice:
    """The kernel that is the fastest on these calls, measured here against dense torch.

    Dense torch is given the same work: the residual and the activation too. A layer for which it
    wins, or loses by less than 5 %, stays dense. Between two calls ``others`` take the caches, as
    the rest of a model does. What was measured before on this machine is taken from ``choices``.
    """
    able = [kernel for kernel in by_priority() if kernel.refuses(problem) is None]
    if not able:
        return choose(problem)
    unnamed = replace(problem, name="").to_string()
    others = others or Others(0)
    calls = [asdict(example) for example in examples]
    question = [unnamed, bias is not None, [k.name for k in able], calls, others.nbytes]
    if problem.device != "cpu":
        question.append(torch.cuda.get_device_name(problem.device))
    times = choices.get(question)
    if times is None:
        times = _measure(problem, weight, bias, examples, able, others)
        choices.put(question, times)
    return _decide(times)


def _decide(times: dict[str, float]) -> Choice:
    dense = times["dense"]
    packed = {name: ms for name, ms in times.items() if name != "dense"}
    best = min(packed, key=lambda name: packed[name])
    if packed[best] < _WORTH * dense:
        return Choice(best, dense, packed[best])
    said = f"dense {dense:.3g} ms, packed {packed[best]:.3g} ms: stays dense"
    return Choice(None, dense, packed[best], said)


def _measure(
    problem: Problem,
    weight: PackedWeight,
    bias: Tensor | None,
    examples: Sequence[Example],
    able: Sequence[Kernel],
    others: Others,
) -> dict[str, float]:
    """Milliseconds by kernel, and for ``"dense"``, over all the calls of one run."""
    device = problem.device
    tiles = {k.name: [tile.to(device) for tile in k.tile(problem, weight)] for k in able}
    runs = {kernel.name: kernel.prepare(problem) for kernel in able}
    dense = weight.unpack().to(device)
    total = dict.fromkeys(["dense", *tiles], 0.0)
    for example in examples:
        x = example.input(problem)
        residual = multiply(problem, dense, x, bias) if example.residual else None
        calls: dict[str, Callable[[], Tensor]] = {
            "dense": lambda x=x, r=residual, a=example.activation: _dense(  # type: ignore[misc]
                problem, dense, x, bias, a, r
            )
        }
        for name, run in runs.items():
            given = (tiles[name], x, bias, example.activation, residual)
            calls[name] = lambda run=run, given=given: run(*given)  # type: ignore[misc]
        waited = {name: _waited(call, device) for name, call in calls.items()}
        warm = [x] if residual is None else [x, residual]
        for name, ms in medians(waited, lambda w=warm: others.run(*w)).items():  # type: ignore[misc]
            total[name] += ms * example.calls
    return total


def _waited(call: Callable[[], Tensor], device: str) -> Callable[[], Tensor]:
    """The call, until a GPU has done what it was told."""
    if device == "cpu":
        return call

    def wait() -> Tensor:
        result = call()
        torch.cuda.synchronize(device)
        return result

    return wait


def _dense(
    problem: Problem,
    weight: Tensor,
    x: Tensor,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    """What a dense model does: the sum and a ReLU in place, as most models have them."""
    result = multiply(problem, weight, x, bias)
    if residual is not None:
        result += residual
    return result.relu_() if activation == "relu" else finish(result, activation)
