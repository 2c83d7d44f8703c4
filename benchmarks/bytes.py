"""What packed weights weigh: bytes against the information bound, and the time to pack.

    python benchmarks/bytes.py            # writes results/bytes.md

The bound of an exactly N:M weight is ``log2 C(M, N) / M + bits * N / M`` bits a weight: the
positions of the kept weights, all sets equally likely, and their values, incompressible. Ratios
above 1 are overhead. Every weight measured is unpacked again and compared.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import comb, log2
from pathlib import Path

import safetensors
import torch
import torchvision
from machine import machine
from torch import Tensor, nn

import nmsparsity as nm
from nmsparsity.pruning import prune
from nmsparsity.sites import sites

RESULT = Path(__file__).parent / "results" / "bytes.md"
PATTERNS = (
    *("1:2", "2:4", "4:8", "8:16", "16:32", "32:64", "1:4", "2:8", "4:16", "8:32", "16:64"),
    *("1:8", "2:16", "4:32", "1:16", "2:32", "1:32", "3:4", "6:8", "1:3", "1:5", "2:5", "3:7"),
)
MODEL_PATTERNS = ("2:4", "1:4", "4:8", "2:8", "1:16")
SHAPE = (3750, 6720)
PAGE = """# What packed weights weigh

Measured {date} by `python {command}`, one thread.
{machine} safetensors {safetensors}, torchvision {torchvision}.

## One weight of {shape} ({millions:.1f} million), random, exactly N:M

The bound is log2 C(M, N) / M + bits * N / M bits a weight. "With a bitmask": the same values and
one bit a weight, as sparse-bitmask checkpoints of other tools have it. Times are medians of
{repeats}, fp32.

{weights}

## A whole ResNet-18, pruned by magnitude, everything in the file counted

`nm.save` and `nm.load`; batch norms, the first convolution and the classifier are stored dense.
Bound: the same with every sparse weight at its bound, and a file without a header. gzip -6: what
it makes of the dense state with its zeros.

{models}
"""


def bound(pattern: nm.Pattern, bits: int) -> float:
    """Bits a weight that no coding can beat."""
    return log2(comb(pattern.m, pattern.n)) / pattern.m + bits * pattern.density


@dataclass
class Sized:
    coding: str
    percent: float
    ratio: float


def sized(weight: Tensor, pattern: nm.Pattern) -> Sized:
    packed = nm.PackedWeight.pack(weight, pattern)
    assert torch.equal(packed.unpack(), weight)
    groups = packed.values.shape[0]
    least = groups * pattern.m * bound(pattern, 8 * weight.itemsize) / 8
    return Sized(packed.coding, 100 * packed.nbytes / weight.nbytes, packed.nbytes / least)


def seconds(run: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def weight_table(repeats: int) -> list[str]:
    lines = [
        "| pattern | coding | fp32, % of dense | / bound | with a bitmask | "
        "fp16, % of dense | / bound | with a bitmask | pack s | unpack s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    torch.manual_seed(0)
    dense = torch.randn(SHAPE)
    for text in PATTERNS:
        pattern = nm.Pattern.parse(text)
        weight = dense * pattern.mask(dense.abs())
        full, half = (sized(w, pattern) for w in (weight, weight.half()))
        mask32, mask16 = (100 * (pattern.density + 1 / bits) for bits in (32, 16))
        packed = nm.PackedWeight.pack(weight, pattern)
        packing = seconds(lambda w=weight, p=pattern: nm.PackedWeight.pack(w, p), repeats)
        unpacking = seconds(packed.unpack, repeats)
        lines.append(
            f"| {text} | {full.coding} | {full.percent:.2f} | {full.ratio:.4f} | {mask32:.2f} | "
            f"{half.percent:.2f} | {half.ratio:.4f} | {mask16:.2f} | "
            f"{packing:.2f} | {unpacking:.2f} |"
        )
    return lines


def resnet(text: str, dtype: torch.dtype) -> nn.Module:
    """ResNet-18 with random weights, N:M in all convolutions but the first."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18().to(dtype)
    prune(model, text)
    return model


def model_bound(model: nn.Module, text: str) -> float:
    """The bytes of the model if positions and values stood exactly at the bound."""
    pattern = nm.Pattern.parse(text)
    sparse = [site.parameter for site in sites(model) if pattern.holds(site.parameter, site.layout)]
    total = sum(tensor.nbytes for tensor in model.state_dict().values())
    for weight in sparse:
        total += weight.numel() * bound(pattern, 8 * weight.itemsize) / 8 - weight.nbytes
    return total


def model_table() -> list[str]:
    lines = [
        "| pattern | dtype | dense bytes | file bytes | % of dense | / bound | "
        "gzip -6, % of dense | save s | load s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for dtype in (torch.float32, torch.float16):
        for text in MODEL_PATTERNS:
            lines.append(model_line(text, dtype))
    return lines


def model_line(text: str, dtype: torch.dtype) -> str:
    model, other = resnet(text, dtype), torchvision.models.resnet18().to(dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet18.safetensors"
        saved = nm.save(model, path)
        saving = seconds(lambda: nm.save(model, path), 3)
        loading = seconds(lambda: nm.load(path, other), 3)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    raw = b"".join(bytes(tensor.numpy().tobytes()) for tensor in model.state_dict().values())
    zipped = 100 * len(gzip.compress(raw, 6)) / len(raw)
    return (
        f"| {text} | {str(dtype).removeprefix('torch.')} | {saved.dense_nbytes:,} | "
        f"{saved.nbytes:,} | {100 * saved.nbytes / saved.dense_nbytes:.2f} | "
        f"{saved.nbytes / model_bound(model, text):.4f} | {zipped:.2f} | "
        f"{saving:.2f} | {loading:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    command = " ".join(["benchmarks/bytes.py", *sys.argv[1:]])
    text = PAGE.format(
        date=datetime.date.today(),
        command=command,
        machine=" ".join(machine()),
        safetensors=safetensors.__version__,
        torchvision=torchvision.__version__,
        shape=list(SHAPE),
        millions=SHAPE[0] * SHAPE[1] / 1e6,
        repeats=arguments.repeats,
        weights="\n".join(weight_table(arguments.repeats)),
        models="\n".join(model_table()),
    )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
