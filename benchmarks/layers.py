"""How fast one packed layer is: ours against the best dense engine, layer by layer.

    pip install 'nmsparsity[bench]'              # what is missing is left out, and said
    python benchmarks/layers.py --threads 1      # writes results/layers-1.md
    python benchmarks/layers.py --threads 2 --patterns 2:4 4:8 1:4 2:8 1:8 1:16
    python benchmarks/layers.py --only 3x3 --rounds 2 --out /tmp/quick.md     # a quick look

All engines compute the same layer in one process and take turns; the medians are compared, and our
results are checked against torch in double precision in the same run. Dense engines get the dense
weight, fp32, at their defaults; ours gets the weight pruned by magnitude. Linear layers of one
token cycle through copies of the weight that together exceed the caches, as a whole model does.
With several threads everything is measured with one thread too, and the scaling is stated.
Interrupted, the same command goes on. DeepSparse: see deepsparse_client.py.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from deepsparse_client import DeepSparse
from journal import Journal
from machine import machine
from shapes import SHAPES, Shape, dense, last, module
from torch import Tensor

import nmsparsity as nm
from nmsparsity.bench import ENGINES
from nmsparsity.bench.engines import versions
from nmsparsity.bench.progress import Progress
from nmsparsity.bench.rounds import interleaved
from nmsparsity.kernels import KERNELS
from nmsparsity.packed import PackedWeight

RESULTS = Path(__file__).parent / "results"
PATTERNS = ("2:4", "1:4", "1:8", "1:16")
COLD_BYTES = 96 * 2**20
OTHERS = ("onnxruntime", "openvino")

Run = Callable[[], Any]


def dense_runs(shape: Shape, weight: Tensor, x: Tensor, threads: int) -> dict[str, list[Run]]:
    """Every dense engine that is installed, with as many copies as exceed the caches."""
    copies = -(-COLD_BYTES // weight.nbytes) if shape.group.endswith("cold") else 1
    weights = [weight.clone() for _ in range(copies)]
    runs: dict[str, list[Run]] = {"torch": [lambda w=w: dense(w, x) for w in weights]}  # type: ignore[misc]
    if shape.kind != "linear":
        w, y = last(weight), last(x)
        runs["torch channels_last"] = [lambda: dense(w, y)]
    for name in OTHERS:
        if ENGINES[name].missing() is None and not (copies > 1 and name == "openvino"):
            # It takes minutes to compile that many models.
            runs[name] = [ENGINES[name].start(module(w), x, threads) for w in weights]
    return runs


def by_us(shape: Shape, weight: Tensor, x: Tensor, pattern: nm.Pattern) -> Run:
    """Our run of a pruned weight, as a packed layer calls it."""
    problem, kernel = shape.problem(pattern), KERNELS["native"]
    tiles = kernel.tile(problem, PackedWeight.pack(weight, pattern))
    call = kernel.prepare(problem)
    return lambda: call(tiles, x)


def by_deepsparse(
    server: DeepSparse | None, shape: Shape, weights: dict[str, Tensor], x: Tensor, threads: int
) -> dict[str, Run]:
    """DeepSparse with the dense and the pruned weights."""
    if server is None or shape.group.endswith("cold"):
        return {}
    return {
        f"deepsparse {text}": server.start(module(its), x, threads) for text, its in weights.items()
    }


def cycle(runs: list[Run]) -> Run:
    """One of the copies after the other."""
    if len(runs) == 1:
        return runs[0]
    turn = 0

    def run() -> Any:
        nonlocal turn
        turn = (turn + 1) % len(runs)
        return runs[turn]()

    return run


def relative(y: Tensor, truth: Tensor) -> float:
    return float((y - truth).abs().max() / truth.abs().max())


def measure(
    shape: Shape, patterns: list[str], threads: int, rounds: int, server: DeepSparse | None
) -> dict[str, Any]:
    """Seconds by engine and pattern, and the largest error of ours."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    x, weight = shape.input(), shape.weight()
    made = dense_runs(shape, weight, x, threads)
    copies, error, pruned = len(made["torch"]), 0.0, {"dense": weight}
    for text in patterns:
        pattern = nm.Pattern.parse(text)
        pruned[text] = weight * pattern.mask(weight.abs())
        made[text] = [by_us(shape, pruned[text], x, pattern) for _ in range(copies)]
        if shape.kind != "linear":
            made[f"{text} channels_last"] = [by_us(shape, pruned[text], last(x), pattern)]
        truth = dense(pruned[text].double(), x.double())
        error = max([error, *(relative(made[n][0](), truth) for n in made if n.startswith(text))])
    runs = {name: cycle(its) for name, its in made.items()}
    runs |= by_deepsparse(server, shape, pruned, x, threads)
    times = {name: its.median for name, its in interleaved(runs, rounds).items()}
    return {"times": times, "error": error}


def ours(times: dict[str, float], pattern: str) -> str:
    """The faster of the two memory formats."""
    return min(
        (n for n in (pattern, f"{pattern} channels_last") if n in times), key=times.__getitem__
    )


def best_dense(times: dict[str, float]) -> str:
    asked = [name for name in times if ":" not in name and not name.startswith("deepsparse")]
    return min(asked, key=times.__getitem__)


def ratio(found: dict[str, Any], pattern: str) -> float:
    times = found["times"]
    return float(times[best_dense(times)] / times[ours(times, pattern)])


def line(shape: Shape, found: dict[str, Any], one: dict[str, Any], patterns: list[str]) -> str:
    """A row of the table; ``one`` is what was found with one thread."""
    times, best = found["times"], best_dense(found["times"])
    scaled = found is not one
    cells = []
    for text in patterns:
        name = ours(times, text)
        useful = shape.work * nm.Pattern.parse(text).density / times[name] / 1e9
        scaling = one["times"][ours(one["times"], text)] / times[name]
        also = f", {'last, ' if name != text else ''}".rstrip(" ,")
        more = f", scales {scaling:.2f}" if scaled else ""
        cells.append(f"{ratio(found, text):.2f} ({useful:.0f}{also}{more})")
    scaling = one["times"][best_dense(one["times"])] / times[best]
    more = f", scales {scaling:.2f}" if scaled else ""
    head = f"| {shape.name} | {best} {times[best] * 1e6:.0f} us{more} "
    cells = [f"{shape.work / times[best] / 1e9:.0f}", *cells, f"{found['error']:.0e}"]
    return f"{head}| {' | '.join(cells)} |"


def beside_deepsparse(
    found: dict[str, dict[str, Any]], patterns: list[str], threads: int
) -> list[str]:
    """Its times and ours, where it was there."""
    with_it = {n: f["times"] for n, f in found.items() if "deepsparse dense" in f["times"]}
    if not with_it:
        return []
    lines = [
        "",
        f"DeepSparse 1.8.0 beside them, {threads} thread(s), microseconds, its / ours "
        "(above 1 ours is faster):",
        "",
        f"| layer | its dense | {' | '.join(patterns)} |",
        "|---" * (len(patterns) + 2) + "|",
    ]
    for name, times in with_it.items():
        cells = []
        for text in patterns:
            its, our = times[f"deepsparse {text}"], times[ours(times, text)]
            cells.append(f"{its * 1e6:.0f} / {our * 1e6:.0f} = {its / our:.2f}")
        lines.append(f"| {name} | {times['deepsparse dense'] * 1e6:.0f} | {' | '.join(cells)} |")
    return lines


def medians(
    found: dict[str, dict[str, Any]], shapes: list[Shape], patterns: list[str], threads: int
) -> list[str]:
    lines = [
        "",
        f"Medians of a class, {threads} thread(s):",
        "",
        f"| class | {' | '.join(patterns)} |",
    ]
    lines.append("|---" * (len(patterns) + 1) + "|")
    for group in dict.fromkeys(shape.group for shape in shapes):
        its = [found[shape.name] for shape in shapes if shape.group == group]
        middle = (statistics.median(ratio(one, text) for one in its) for text in patterns)
        lines.append(f"| {group} | {' | '.join(f'{value:.2f}' for value in middle)} |")
    return lines


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--patterns", nargs="+", default=list(PATTERNS))
    parser.add_argument("--only", default="", help="shapes whose name has this in it")
    parser.add_argument("--deepsparse", help="the python of an environment with deepsparse 1.8.0")
    parser.add_argument("--out", type=Path, help="default: results/layers-THREADS.md")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    asked = options()
    if asked.deepsparse and not Path(asked.deepsparse).exists():
        raise SystemExit(f"--deepsparse {asked.deepsparse}: no such interpreter")
    out, patterns = asked.out or RESULTS / f"layers-{asked.threads}.md", asked.patterns
    shapes = [shape for shape in SHAPES if asked.only in shape.name]
    counts = sorted({1, asked.threads})
    settings = {**vars(asked), "out": str(out), "machine": machine(), "isa": nm.native.isa()}
    journal = Journal(out, settings | {"versions": versions()})
    server = DeepSparse(asked.deepsparse) if asked.deepsparse else None
    with Progress(len(shapes) * len(counts)) as progress:
        for shape in shapes:
            for threads in counts:
                name = f"{shape.name}, {threads}"
                if name not in journal.found:
                    journal.put(name, measure(shape, patterns, threads, asked.rounds, server))
                progress.step(name)
            found = {s.name: journal.found.get(f"{s.name}, {asked.threads}") for s in shapes}
            one = journal.found[f"{shape.name}, 1"]
            one = found[shape.name] if asked.threads == 1 else one
            print(line(shape, found[shape.name], one, patterns), flush=True)
    lines = [
        f"# Packed layers against the best dense engine, {asked.threads} thread(s)",
        "",
        "Ratio of times, dense over packed; above 1 ours is faster. In brackets useful GFLOP/s "
        "(counting kept weights only), and `last` where channels_last is the faster of the two "
        f"memory formats. Medians of {asked.rounds} rounds, all engines in turn in one process. "
        "`scales`: time with one thread over time with all, of the fastest each time. "
        "`error` is ours against double precision, relative to the largest output.",
        "",
        head := f"| layer | best dense | GFLOP/s | {' | '.join(patterns)} | error |",
        "|---" * (head.count("|") - 1) + "|",
    ]
    for shape in shapes:
        its = journal.found[f"{shape.name}, {asked.threads}"]
        one = its if asked.threads == 1 else journal.found[f"{shape.name}, 1"]
        lines.append(line(shape, its, one, patterns))
    for threads in reversed(counts):
        found = {s.name: journal.found[f"{s.name}, {threads}"] for s in shapes}
        lines += medians(found, shapes, patterns, threads)
        lines += beside_deepsparse(found, patterns, threads)
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    lines += [
        "",
        *machine(),
        f"{versions()}. Instruction set: {nm.native.isa()}.",
        f"Command: `python benchmarks/{command}`, {datetime.date.today()}.",
    ]
    journal.close(out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
