"""What N:M training costs: step times of dense, ours and the published way, in one run.

    python benchmarks/training_cost.py                      # writes results/training_cost.md
    python benchmarks/training_cost.py --methods all --optimizer adamw
                                                            # results/training_cost_methods.md

The three variants of each network take turns, step by step, on the same batch; the medians are
compared. "Published way" is an autograd function that makes the mask by sorting in every forward,
as the code of arXiv 2102.04010 does, written here from the paper. In the same run it is checked
that ours and the published way compute the same weights.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from machine import machine
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import register_parametrization

import nmsparsity as nm

RESULT = Path(__file__).parent / "results" / "training_cost.md"
METHODS_RESULT = RESULT.with_name("training_cost_methods.md")
DECAY = 2e-4


class SortedMask(torch.autograd.Function):
    """The published way: sort every group in every forward, decay in every backward."""

    @staticmethod
    def forward(context, weight: Tensor, n: int, m: int) -> Tensor:  # type: ignore[override]
        moved = weight.movedim(1, -1)
        groups = moved.abs().reshape(-1, m)
        pruned = groups.argsort(dim=1)[:, : m - n]
        mask = torch.ones_like(groups).scatter_(1, pruned, 0.0)
        mask = mask.reshape(moved.shape).movedim(-1, 1)
        context.save_for_backward(weight, mask)
        return weight * mask

    @staticmethod
    def backward(context, grad: Tensor):  # type: ignore[override]
        weight, mask = context.saved_tensors
        return grad + DECAY * (1 - mask) * weight, None, None


class Published(nn.Module):
    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.n, self.m = n, m

    def forward(self, weight: Tensor) -> Tensor:
        return SortedMask.apply(weight, self.n, self.m)


class Encoder(nn.Module):
    """Six layers of a Transformer encoder, width 512, on embedded tokens."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(512, 8, 2048, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.head = nn.Linear(512, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(tokens).mean(1))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "ResNet-18, 32x32, batch 128": (
        lambda: torchvision.models.resnet18(num_classes=10), (128, 3, 32, 32), "sgd"),
    "ResNet-18, 64x64, batch 32": (
        lambda: torchvision.models.resnet18(num_classes=10), (32, 3, 64, 64), "sgd"),
    "ResNet-50, 224x224, batch 8": (
        lambda: torchvision.models.resnet50(num_classes=10), (8, 3, 224, 224), "sgd"),
    "Transformer, 6 x 512, 16 x 64 tokens": (Encoder, (16, 64, 512), "adamw"),
}  # fmt: skip


# Every method in the phase that lasts; schedules are stopped in the middle.
METHODS: dict[str, tuple[str, dict[str, object]]] = {
    "ste": ("ste", {}),
    "sr_ste, gradient": ("sr_ste", {"decay": DECAY}),
    "sr_ste, decoupled": ("sr_ste", {"decay": DECAY, "form": "decoupled"}),
    "fixed": ("fixed", {}),
    "step, dense phase": ("step", {"total_steps": 10**6}),
    "step, frozen phase": ("step", {"total_steps": 2}),
    "s_ste": ("s_ste", {}),
    "gradual, mask": ("gradual", {"steps": 10**6}),
    "gradual, count": ("gradual", {"form": "count", "steps": 10**6}),
}


def optimizer_of(model: nn.Module, kind: str) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-5)
    return torch.optim.AdamW(model.parameters(), 1e-4)


def variants(case: str, n: int, m: int, kind: str):
    """Dense, ours, published: model and optimizer of each, from the same initial weights."""
    make, _, _ = CASES[case]
    torch.manual_seed(0)
    dense = make()
    ours, published = copy.deepcopy(dense), copy.deepcopy(dense)
    made = {"dense": (dense, optimizer_of(dense, kind))}
    optimizer = optimizer_of(ours, kind)
    sparsifier = nm.sparsify(ours, optimizer, f"{n}:{m}", decay=DECAY)
    made["ours"] = (ours, optimizer)
    for name in sparsifier.weights():
        path, _, attribute = name.rpartition(".")
        register_parametrization(published.get_submodule(path), attribute, Published(n, m))
    made["published"] = (published, optimizer_of(published, kind))
    return made, sparsifier


def method_variants(case: str, pattern: str, kind: str, names: list[str]):
    """Dense and every method: model and optimizer of each, from the same initial weights."""
    torch.manual_seed(0)
    dense = CASES[case][0]()
    made = {"dense": (dense, optimizer_of(dense, kind))}
    for name in names:
        model = copy.deepcopy(dense)
        optimizer = optimizer_of(model, kind)
        method, options = METHODS[name]
        nm.sparsify(model, optimizer, pattern, method=method, **options)
        made[name] = (model, optimizer)
    return made


def measure(case: str, n: int, m: int, kind: str, rounds: int) -> dict[str, float]:
    """Median seconds of a step of each variant, and the largest difference of the weights."""
    made, sparsifier = variants(case, n, m, kind)
    after_first: list[float] = []
    times = take_turns(
        case, made, rounds, lambda: after_first.append(largest_difference(made, sparsifier))
    )
    return {**times, "difference": after_first[0]}


def take_turns(
    case: str, made, rounds: int, after_first: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Median seconds of a step of each variant, step by step in turns on the same batch."""
    torch.manual_seed(1)
    inputs, labels = torch.randn(CASES[case][1]), torch.randint(0, 10, CASES[case][1][:1])

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        return time.perf_counter() - start

    times: dict[str, list[float]] = {name: [] for name in made}
    names = list(made)
    for round_ in range(rounds + 1):
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            seconds = step(*made[name])
            if round_:
                times[name].append(seconds)
        if round_ == 0:
            after_first()
    return {name: statistics.median(t) for name, t in times.items()}


@torch.no_grad()
def largest_difference(made, sparsifier: nm.Sparsifier) -> float:
    """The dense weights of ours and of the published way, relative to the largest of a layer.

    Not the sparse ones: where two weights of a group are equal to the last bit but one, rounding
    in another order of threads picks another of them.
    """
    worst = 0.0
    with sparsifier.dense_weights() as ours:
        for name, weight in ours.items():
            path, _, attribute = name.rpartition(".")
            module = made["published"][0].get_submodule(path)
            theirs = module.parametrizations[attribute].original
            worst = max(worst, float((weight - theirs).abs().max() / theirs.abs().max()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--optimizer", choices=["sgd", "adamw"], help="default: the case's own")
    parser.add_argument(
        "--methods", nargs="+", choices=["all", *METHODS], help="against dense, in another table"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.methods:
        write(METHODS_RESULT, methods_table(options))
    else:
        write(RESULT, published_table(options))


def methods_table(options: argparse.Namespace) -> list[str]:
    """One row per network and method; those for Adam alone are left out under SGD, and named."""
    names = list(METHODS) if "all" in options.methods else options.methods
    lines = [
        "# What every training method costs",
        "",
        f"Step times in one process, dense and all methods taking turns, medians of "
        f"{options.rounds} rounds; pattern {options.pattern}, {options.threads} threads. `ratio` "
        "is the step time over dense, in the phase of the method that is named.",
        "",
        "| network | optimizer | method | ms | ratio |",
        "|---|---|---|---|---|",
    ]
    for case in options.cases:
        kind = options.optimizer or CASES[case][2]
        fit = [name for name in names if kind == "adamw" or METHODS[name][0] != "step"]
        times = take_turns(case, method_variants(case, options.pattern, kind, fit), options.rounds)
        for name, seconds in times.items():
            ratio = seconds / times["dense"]
            lines.append(f"| {case} | {kind} | {name} | {seconds * 1e3:.1f} | {ratio:.3f} |")
            print(lines[-1], flush=True)
        for name in sorted(set(names) - set(fit)):
            lines.append(f"| {case} | {kind} | {name} | needs Adam | |")
    return lines


def published_table(options: argparse.Namespace) -> list[str]:
    """One row per network: dense, SR-STE here, SR-STE the published way."""
    pattern = nm.Pattern.parse(options.pattern)
    lines = [
        "# What N:M training costs",
        "",
        f"Step times in one process, taking turns, medians of {options.rounds} rounds; pattern "
        f"{pattern}, SR-STE, {options.threads} threads. `ratio` is the variant's step time over "
        "dense. `error` is the largest difference between our dense weights and those of the "
        "published way after a step, relative to the largest weight, in the same run.",
        "",
        "| network | dense ms | ours ms | published ms | ours ratio | published ratio | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in options.cases:
        kind = options.optimizer or CASES[case][2]
        t = measure(case, pattern.n, pattern.m, kind, options.rounds)
        ours, published = t["ours"] / t["dense"], t["published"] / t["dense"]
        lines.append(
            f"| {case} | {t['dense'] * 1e3:.1f} | {t['ours'] * 1e3:.1f} | "
            f"{t['published'] * 1e3:.1f} | **{ours:.3f}** | {published:.2f} | "
            f"{t['difference']:.1e} |"
        )
        print(lines[-1], flush=True)
    return lines


def write(result: Path, lines: list[str]) -> None:
    """The table with machine and command, in place of the file there was."""
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    lines += [
        "",
        *machine(),
        f"Command: `python benchmarks/{command}`, {datetime.date.today()}.",
    ]
    result.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
