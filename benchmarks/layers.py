"""How fast one packed layer is: ours against the best dense engine, layer by layer.

    pip install onnx onnxruntime openvino        # what is missing is left out, and said
    python benchmarks/layers.py --threads 1      # writes results/layers-1.md

All engines compute the same layer in one process and take turns; the medians are compared, and our
results are checked against torch in double precision in the same run. Dense engines get the dense
weight, fp32, at their defaults; ours gets the weight pruned by magnitude. Linear layers of one
token cycle through copies of the weight that together exceed the caches, as a whole model does.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from engines import ENGINES, Run, exported, installed, medians, versions
from machine import machine
from torch import Tensor, nn
from torch.nn import functional

import nmsparsity as nm
from nmsparsity.kernels import KERNELS, Problem
from nmsparsity.packed import PackedWeight

RESULTS = Path(__file__).parent / "results"
PATTERNS = ("2:4", "4:8", "1:4", "2:8", "1:8", "1:16")
COLD_BYTES = 96 * 2**20


@dataclass(frozen=True)
class Shape:
    """A layer and its input: pixels (or tokens), channels in and out, kernel size."""

    kind: str
    inputs: int
    outputs: int
    size: int  # tokens, or the side of the map

    @property
    def name(self) -> str:
        at = f"{self.size} tokens" if self.kind == "linear" else f"{self.size}x{self.size}"
        return f"{self.kind} {self.inputs} to {self.outputs}, {at}"

    @property
    def kernel(self) -> int:
        return 3 if self.kind == "conv 3x3" else 1

    def input(self) -> Tensor:
        if self.kind == "linear":
            return torch.randn(self.size, self.inputs)
        return torch.randn(1, self.inputs, self.size, self.size)

    def weight(self) -> Tensor:
        shape = (self.outputs, self.inputs)
        scale = (self.inputs * self.kernel**2) ** -0.5
        return scale * torch.randn(shape if self.kind == "linear" else (*shape, *2 * [self.kernel]))

    @property
    def group(self) -> str:
        if self.kind != "linear":
            return self.kind
        return {1: "linear, 1 token, cold", 16: "linear, 16 tokens"}.get(
            self.size, "linear, 128-512 tokens"
        )


LINEARS = ((512, 512), (512, 2048), (2048, 512), (768, 3072), (4096, 4096))
SHAPES = [
    *(Shape("linear", i, o, t) for t in (1, 16, 128, 512) for i, o in LINEARS),
    *(Shape("conv 1x1", *s) for s in ((64, 256, 56), (256, 64, 56), (512, 128, 28))),
    *(Shape("conv 1x1", *s) for s in ((1024, 256, 14), (512, 2048, 7))),
    *(Shape("conv 3x3", *s) for s in ((64, 64, 56), (128, 128, 28), (256, 256, 14), (512, 512, 7))),
]


def dense(weight: Tensor, x: Tensor) -> Tensor:
    if weight.dim() == 2:
        return functional.linear(x, weight)
    return functional.conv2d(x, weight, padding=weight.shape[2] // 2)


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def module(weight: Tensor) -> nn.Module:
    """The layer as torch has it."""
    if weight.dim() == 2:
        layer: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    else:
        shape = (weight.shape[1], weight.shape[0], weight.shape[2])
        layer = nn.Conv2d(*shape, padding=weight.shape[2] // 2, bias=False)
    layer.load_state_dict({"weight": weight})
    return layer


def by_torch(weight: Tensor, x: Tensor, threads: int) -> Run:
    return lambda: dense(weight, x)


def by_torch_last(weight: Tensor, x: Tensor, threads: int) -> Run:
    weight, x = last(weight), last(x)
    return lambda: dense(weight, x)


def engines(shape: Shape) -> dict[str, Callable[[Tensor, Tensor, int], Run]]:
    """The dense engines that are installed and fit the layer."""
    found: dict[str, Callable[[Tensor, Tensor, int], Run]] = {"torch": by_torch}
    if shape.kind != "linear":
        found["torch channels_last"] = by_torch_last
    for name in filter(installed, ENGINES):
        found[name] = lambda w, x, threads, name=name: ENGINES[name](
            exported(module(w), x), x, threads
        )
    return found


def by_us(shape: Shape, weight: Tensor, x: Tensor, pattern: nm.Pattern) -> tuple[Run, Tensor]:
    """Our run, and the weight it multiplies by."""
    pruned = weight * pattern.mask(weight.abs())
    pad = (shape.kernel // 2,) * 2
    kind = "linear" if shape.kind == "linear" else "conv2d"
    problem = Problem(kind, tuple(weight.shape), pattern, torch.float32, padding=pad)
    if kind == "linear":
        problem = Problem(kind, tuple(weight.shape), pattern, torch.float32)
    kernel = KERNELS["native"]
    tiles = kernel.tile(problem, PackedWeight.pack(pruned, pattern))
    return lambda: kernel.run(problem, tiles, x), pruned


def cycle(runs: list[Run]) -> Run:
    """One of the copies after the other."""
    turn = 0

    def run() -> Tensor:
        nonlocal turn
        turn = (turn + 1) % len(runs)
        return runs[turn]()

    return run


def measure(shape: Shape, threads: int, rounds: int) -> tuple[str, dict[str, float], float]:
    """The best dense engine, seconds by engine and pattern, and the largest error of ours."""
    torch.manual_seed(0)
    x, weight = shape.input(), shape.weight()
    copies = -(-COLD_BYTES // weight.nbytes) if shape.group.endswith("cold") else 1
    runs: dict[str, Run] = {}
    for name, make in engines(shape).items():
        if copies > 1 and name == "openvino":
            continue  # It takes minutes to compile that many models.
        runs[name] = cycle([make(weight.clone(), x, threads) for _ in range(copies)])
    error = 0.0
    for text in PATTERNS:
        made = [by_us(shape, weight, x, nm.Pattern.parse(text)) for _ in range(copies)]
        runs[text] = cycle([run for run, _ in made])
        truth = dense(made[0][1].double(), x.double())
        error = max(error, float((runs[text]() - truth).abs().max() / truth.abs().max()))
        if shape.kind != "linear":
            lasts, _ = by_us(shape, weight, last(x), nm.Pattern.parse(text))
            runs[f"{text} channels_last"] = lasts
            error = max(error, float((lasts() - truth).abs().max() / truth.abs().max()))
    times = medians(runs, rounds)
    best = min((name for name in times if ":" not in name), key=lambda name: times[name])
    return best, times, error


def line(shape: Shape, best: str, times: dict[str, float], error: float) -> tuple[str, list[float]]:
    cells, ratios = [], []
    work = 2 * shape.inputs * shape.outputs * shape.kernel**2
    work *= shape.size if shape.kind == "linear" else shape.size**2
    for text in PATTERNS:
        name = min(
            (n for n in (text, f"{text} channels_last") if n in times), key=lambda n: times[n]
        )
        pattern = nm.Pattern.parse(text)
        ratios.append(times[best] / times[name])
        speed = work * pattern.density / times[name] / 1e9
        cells.append(f"{ratios[-1]:.2f} ({speed:.0f}{'' if name == text else ', last'})")
    start = f"| {shape.name} | {best} {times[best] * 1e6:.0f} us | {work / times[best] / 1e9:.0f} |"
    return f"{start} {' | '.join(cells)} | {error:.0e} |", ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="shapes whose name has this in it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    head = f"| layer | best dense | GFLOP/s | {' | '.join(PATTERNS)} | error |"
    lines = [
        f"# Packed layers against the best dense engine, {options.threads} thread(s)",
        "",
        "Ratio of times, dense over packed; above 1 ours is faster. In brackets useful GFLOP/s "
        "(counting kept weights only), and `last` where channels_last is the faster of the two "
        f"memory formats. Medians of {options.rounds} rounds, all engines in turn in one process. "
        "`error` is ours against double precision, relative to the largest output.",
        "",
        head,
        "|---" * (head.count("|") - 1) + "|",
    ]
    groups: dict[str, list[list[float]]] = {}
    with torch.no_grad():
        for shape in SHAPES:
            if options.only in shape.name:
                text, ratios = line(shape, *measure(shape, options.threads, options.rounds))
                groups.setdefault(shape.group, []).append(ratios)
                lines.append(text)
                print(text, flush=True)
    lines += ["", "Medians of a class:", "", f"| class | {' | '.join(PATTERNS)} |"]
    lines.append("|---" * (len(PATTERNS) + 1) + "|")
    for group, rows in groups.items():
        middle = (f"{statistics.median(column):.2f}" for column in zip(*rows, strict=True))
        lines.append(f"| {group} | {' | '.join(middle)} |")
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    lines += [
        "",
        *machine(),
        f"{versions()}. Instruction set: {nm.native.isa()}.",
        f"Command: `python benchmarks/{command}`, {datetime.date.today()}.",
    ]
    (RESULTS / f"layers-{options.threads}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
