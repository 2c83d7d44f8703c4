"""How fast a weight becomes N:M: the native kernel against a copy and the published operator.

    python benchmarks/mask_kernel.py > benchmarks/results/mask_kernel.md

Every round times every candidate once, one after the other, so that a disturbance hits all of
them; medians over the rounds. Masks are compared element by element in the same run.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import time
from collections.abc import Callable

import torch
from machine import machine
from torch import Tensor

from nmsparsity import native
from nmsparsity.layout import Layout
from nmsparsity.pattern import Pattern

PATTERNS = ("2:4", "1:4", "4:8", "2:8", "1:8", "1:16", "8:16", "8:32", "16:64")
Candidates = dict[str, Callable[[], object]]


def published(weight: Tensor, pattern: Pattern) -> Tensor:
    """The operator of arXiv 2102.04010 as its forward does it: sort every group, scatter zeros."""
    order = weight.detach().abs().reshape(-1, pattern.m).argsort(dim=1)
    mask = torch.ones_like(weight).reshape(-1, pattern.m)
    mask.scatter_(1, order[:, : pattern.m - pattern.n], 0.0)
    return weight * mask.reshape(weight.shape)


def plain(weight: Tensor, pattern: Pattern) -> Tensor:
    """`Pattern.mask`, the plain-torch truth of this package, and the product."""
    return weight * pattern.mask(weight.abs())


def in_memory_order(weight: Tensor, pattern: Pattern) -> Tensor:
    """The published operator has its groups along memory: bring the axis there first."""
    return weight if pattern.axis == "kernel" else weight.permute(0, 2, 3, 1).contiguous()


def candidates(weight: Tensor, pattern: Pattern) -> Candidates:
    """What is timed for one pattern; each leaves the sparse weight somewhere."""
    rows = Layout().fold(weight, pattern.axis)
    sparse = torch.empty_like(rows)
    kept = torch.empty_like(rows, dtype=torch.bool)
    n, m = pattern.n, pattern.m
    moved = in_memory_order(weight, pattern)
    return {
        "project": lambda: native.project(rows, sparse, n=n, m=m),
        "project + mask": lambda: native.project(rows, sparse, mask=kept, n=n, m=m),
        "published": lambda: published(moved, pattern),
        "plain torch": lambda: plain(weight, pattern),
    }


def step_candidates(weight: Tensor) -> Candidates:
    """The other moments of a step, at 2:4."""
    n, length = weight.shape[0], weight.shape[1]
    shape = (n, length, weight[0, 0].numel())
    dense, sparse, grad = weight.clone(), weight.clone(), torch.zeros_like(weight)
    batch = native.Batch([native.NativeWeight(sparse, dense, shape, 2, 4)])
    batch.project()
    grad2 = torch.zeros_like(weight)

    def torch_check() -> Tensor:
        return ((sparse == 0) | (sparse == dense)).all() & torch.count_nonzero(sparse).bool()

    return {
        "check": batch.check,
        "check by torch": torch_check,
        "term and check": lambda: batch.add_term([1e-4], [grad]),
        "term by torch": lambda: grad2.add_(dense - sparse, alpha=1e-4),
    }


def wrong(weight: Tensor, pattern: Pattern) -> int:
    """Elements of the kernel's mask, and of its sparse weight, that are not the truth's."""
    rows = Layout().fold(weight, pattern.axis)
    sparse, kept = torch.empty_like(rows), torch.empty_like(rows, dtype=torch.bool)
    native.project(rows, sparse, mask=kept, n=pattern.n, m=pattern.m)
    native.project(rows, sparse, n=pattern.n, m=pattern.m)
    truth = Layout().fold(pattern.mask(weight.abs()), pattern.axis)
    return int((kept != truth).sum() + (sparse != rows * truth).sum())


def time_all(todo: Candidates, rounds: int) -> dict[str, float]:
    """Median milliseconds of each."""
    times: dict[str, list[float]] = {name: [] for name in todo}
    for turn in range(rounds + 2):
        for name, run in todo.items():
            start = time.perf_counter()
            run()
            if turn >= 2:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def table(weight: Tensor, axis: str, threads: int, rounds: int) -> None:
    names = list(candidates(weight, Pattern(2, 4, axis)))  # type: ignore[arg-type]
    dtype = str(weight.dtype).removeprefix("torch.")
    print(f"\n## {dtype}, groups along axis `{axis}`, {threads} thread(s)\n")
    print("| pattern | copy_ ms | " + " | ".join(names) + " | wrong elements |")
    print("|---" * (len(names) + 3) + "|")
    target = torch.empty_like(weight)
    for text in PATTERNS:
        pattern = Pattern.parse(text, axis=axis)  # type: ignore[arg-type]
        todo: Candidates = {"copy_": lambda: target.copy_(weight), **candidates(weight, pattern)}
        fast = [name for name in todo if name not in ("published", "plain torch")]
        times = time_all({name: todo[name] for name in fast}, rounds)
        slow = {name: todo[name] for name in todo if name not in fast}
        times.update(time_all(slow, max(3, rounds // 10)))
        copy = times.pop("copy_")
        cells = " | ".join(f"{value:.2f} ({value / copy:.1f}x)" for value in times.values())
        print(f"| {text} | {copy:.2f} | {cells} | {wrong(weight, pattern)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--shape", type=int, nargs=4, default=[512, 512, 3, 3])
    options = parser.parse_args()
    torch.manual_seed(0)
    print("# The mask kernel\n")
    print(
        f"- weight {options.shape}, random normal; medians of {options.rounds} rounds, of a tenth "
        "of them for the published operator and plain torch; in brackets: times torch's `copy_`"
        " of the same tensor in the same rounds\n"
        "- `published`: the operator of arXiv 2102.04010 written from its description (argsort "
        "and scatter on every forward), on a weight whose groups already lie along memory; "
        "`plain torch`: `Pattern.mask` and the product\n"
        "- a training step is `project` and `term and check`\n"
        f"- {machine()[0]} Kernel: {native.isa()}. Date: {datetime.date.today()}\n"
        f"- load average before: {_load()}\n"
        f"- command: `python {' '.join(sys.argv)}`"
    )
    for threads in options.threads:
        torch.set_num_threads(threads)
        for dtype in (torch.float32, torch.bfloat16):
            weight = torch.randn(options.shape).to(dtype)
            for axis in ("input", "kernel"):
                table(weight, axis, threads, options.rounds)
        times = time_all(step_candidates(torch.randn(options.shape)), options.rounds)
        print(f"\n## The rest of a step, float32, {threads} thread(s)\n")
        print("| operation | ms |\n|---|---|")
        for name, value in times.items():
            print(f"| {name} | {value:.2f} |")
    print(f"\nLoad average after: {_load()}")


def _load() -> str:
    with open("/proc/loadavg") as file:
        return " ".join(file.read().split()[:3])


if __name__ == "__main__":
    main()
