"""How near the packed kernels come to what this processor can do, with a plot.

    python benchmarks/roofline.py --threads 1        # writes results/roofline-1.md and .png
    python benchmarks/roofline.py --only 56x56 --rounds 2 --out /tmp/quick.md       # a quick look

The limits, multiply-adds a second and bytes a second from each level of memory, are measured by
peaks.cpp, compiled here with g++, before and after; the higher counts. Useful operations are those
of kept weights only. Bytes are those that must be moved once: packed weight, input, result.
Layers run in a hot loop, so they may come from a cache: then a point lies above the line of
memory, and below that of the cache. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from journal import Journal
from machine import machine
from shapes import SHAPES, Shape, last

import nmsparsity as nm
from nmsparsity.bench.progress import Progress
from nmsparsity.bench.rounds import interleaved
from nmsparsity.kernels import KERNELS
from nmsparsity.packed import PackedWeight

HERE = Path(__file__).parent
PATTERNS = ("2:4", "1:4", "1:8", "1:16")
LEVELS = ("L1", "L2", "L3", "memory")
COLOURS = {"linear": "tab:blue", "conv 1x1": "tab:orange", "conv 3x3": "tab:green"}
MARKS = {"2:4": "o", "4:8": "P", "1:4": "s", "2:8": "X", "1:8": "^", "1:16": "D"}


def peaks(threads: int) -> dict[str, float]:
    """GFLOP/s, and GB/s by level."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peaks"
        flags = ["-O3", "-march=native", "-ffp-contract=fast", "-std=c++17", "-pthread"]
        subprocess.run(["g++", *flags, HERE / "peaks.cpp", "-o", program], check=True)
        done = subprocess.run([program, str(threads)], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


@torch.no_grad()
def measure(shape: Shape, patterns: Sequence[str], rounds: int) -> dict[str, dict[str, float]]:
    """Useful GFLOP/s and operations a byte, by pattern; the faster memory format."""
    torch.manual_seed(0)
    kernel, found, runs = KERNELS["native"], {}, {}
    x, weight = shape.input(), shape.weight()
    forms = {"": x} if shape.kind == "linear" else {"": x, " last": last(x)}
    for text in patterns:
        pattern = nm.Pattern.parse(text)
        problem = shape.problem(pattern)
        pruned = weight * pattern.mask(weight.abs())
        tiles = kernel.tile(problem, PackedWeight.pack(pruned, pattern))
        call = kernel.prepare(problem)
        for form, given in forms.items():
            runs[text + form] = lambda c=call, t=tiles, g=given: c(t, g)
        moved = sum(tile.nbytes for tile in tiles) + x.nbytes + 4 * runs[text]().numel()
        found[text] = {"useful": shape.work * pattern.density, "bytes": float(moved)}
    times = {name: its.median for name, its in interleaved(runs, rounds).items()}
    for text, its in found.items():
        seconds = min(times[text + form] for form in forms)
        its |= {"gflops": its["useful"] / seconds / 1e9, "intensity": its["useful"] / its["bytes"]}
    return found


def picture(found: dict[str, Any], limits: dict[str, float], path: Path, title: str) -> None:
    """Points under roofs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    low, high = 0.1, 1000.0
    axes.plot([low, high], 2 * [limits["gflops"]], "k", label="multiply-add in registers")
    for kind, style in (("looked up", "--"), ("permuted", "-.")):
        axes.plot([low, high], 2 * [limits[kind]], "k", linestyle=style, label=f"operands {kind}")
    for level, style in zip(LEVELS, ((0, (1, 1)), ":", "-.", "-"), strict=True):
        x = [low, limits["gflops"] / limits[level]]
        roof = [limits[level] * value for value in x]
        axes.plot(x, roof, color="gray", linestyle=style, label=f"{level} {limits[level]:.0f} GB/s")
    for shape in SHAPES:
        for text, its in found.get(shape.name, {}).items():
            axes.plot(
                its["intensity"], its["gflops"], MARKS.get(text, "."), color=COLOURS[shape.kind]
            )
    for kind, colour in COLOURS.items():
        axes.plot([], [], "o", color=colour, label=kind)
    for text in sorted({text for its in found.values() for text in its}):
        axes.plot([], [], MARKS.get(text, "."), color="k", markerfacecolor="none", label=text)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(1, 2 * limits["gflops"]))
    axes.set(xlabel="useful operations a byte moved", ylabel="useful GFLOP/s", title=title)
    axes.legend(fontsize="small", ncols=2, loc="lower right")
    beside = path.with_name(f".{path.name}")
    figure.savefig(beside, dpi=150, format=path.suffix[1:])
    os.replace(beside, path)


def table(found: dict[str, Any], limits: dict[str, float], patterns: Sequence[str]) -> list[str]:
    lines = [f"| layer | {' | '.join(patterns)} |", "|---" * (len(patterns) + 1) + "|"]
    for name, its in found.items():
        cells = []
        for text in patterns:
            one = its[text]
            share = one["gflops"] / limits["gflops"]
            cells.append(f"{one['gflops']:.0f} ({share:.0%}, {one['intensity']:.1f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--patterns", nargs="+", default=list(PATTERNS))
    parser.add_argument("--only", default="", help="shapes whose name has this in it")
    parser.add_argument(
        "--out", type=Path, help="default: results/roofline-THREADS.md, .png beside"
    )
    asked = parser.parse_args()
    out = asked.out or HERE / "results" / f"roofline-{asked.threads}.md"
    torch.set_num_threads(asked.threads)
    settings = {**vars(asked), "out": str(out), "machine": machine(), "isa": nm.native.isa()}
    journal = Journal(out, settings)
    before = peaks(asked.threads)
    shapes = [shape for shape in SHAPES if asked.only in shape.name]
    with Progress(len(shapes)) as progress:
        for shape in shapes:
            if shape.name not in journal.found:
                journal.put(shape.name, measure(shape, asked.patterns, asked.rounds))
            progress.step(shape.name)
    after = peaks(asked.threads)
    limits = {name: max(value, after[name]) for name, value in before.items()}
    found = {shape.name: journal.found[shape.name] for shape in shapes}
    title = f"Packed kernels ({nm.native.isa()}), {asked.threads} thread(s)"
    image = out.with_suffix(".png")
    picture(found, limits, image, title)
    roofs = ", ".join(f"{level} {limits[level]:.0f}" for level in LEVELS)
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    lines = [
        f"# How near the packed kernels come to the processor, {asked.threads} thread(s)",
        "",
        f"Measured limits: {limits['gflops']:.0f} GFLOP/s of multiply-adds in registers, "
        f"{limits['cached']:.0f} with one operand from the first cache, {limits['looked up']:.0f} "
        "where every ten of these begin at an address that is loaded (columns of pixels do "
        f"that), {limits['permuted']:.0f} with a permutation for each (tokens do). Bytes read in "
        f"GB/s: {roofs}.",
        "",
        f"![{title}]({image.name})",
        "",
        "Useful GFLOP/s (counting kept weights only), in brackets their share of the limit and the "
        "useful operations for every byte that must be moved: packed weight, input, result. "
        f"Medians of {asked.rounds} rounds in a hot loop, the faster memory format.",
        "",
        *table(found, limits, asked.patterns),
        "",
        *machine(),
        f"Command: `python benchmarks/{command}`, {datetime.date.today()}.",
    ]
    journal.close(out, "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
