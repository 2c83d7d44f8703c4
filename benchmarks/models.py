"""How fast a whole packed model is: ours against the best dense engine.

    pip install 'nmsparsity[bench]' transformers     # what is missing is left out, and said
    python benchmarks/models.py --threads 1          # writes results/models-1.md
    python benchmarks/models.py --only BERT --rounds 2 --out /tmp/quick.md      # a quick look

The sparse models really run; nothing is estimated. Weights are random and pruned by magnitude. All
engines take turns in one process; medians are compared, and all outputs are checked in the same
run. The decoder generates with a cache: see decoder.py. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import decoder
import torch
import torchvision
from journal import Journal
from machine import machine
from torch import Tensor, nn

import nmsparsity as nm
from nmsparsity.bench import Benchmark
from nmsparsity.bench.engines import versions

RESULTS = Path(__file__).parent / "results"
PATTERNS = ("2:4", "1:4", "1:8", "1:16")


def resnet50(batch: int) -> tuple[nn.Module, Tensor]:
    return torchvision.models.resnet50(), torch.randn(batch, 3, 224, 224)


def vit() -> tuple[nn.Module, Tensor]:
    model = torchvision.models.vit_b_16()
    nn.init.normal_(model.heads.head.weight)  # Zeros at first: there would be nothing to compare.
    return model, torch.randn(1, 3, 224, 224)


class Bert(nn.Module):
    """BERT-base, from embedded tokens to the last hidden state."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(attn_implementation="sdpa", torchscript=True)
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(self, embedded: Tensor) -> Tensor:
        return self.bert(inputs_embeds=embedded)[0]


DECODER = f"Decoder of GPT-2 small's shape, {decoder.STEPS} tokens after {decoder.PROMPT}, batch 1"
MODELS = {
    "ResNet-50, 224x224, batch 1": lambda: resnet50(1),
    "ResNet-50, 224x224, batch 16": lambda: resnet50(16),
    "ViT-B/16, 224x224, batch 1": vit,
    "BERT-base, 128 tokens, batch 1": lambda: (Bert(), torch.randn(1, 128, 768)),
    DECODER: None,
}


def measure(name: str, patterns: list[str], threads: int, rounds: int) -> Benchmark:
    torch.manual_seed(0)
    make = MODELS[name]
    if make is None:
        return decoder.benchmark(patterns, threads, rounds)
    model, x = make()
    return nm.benchmark(model, x, patterns=patterns, threads=threads, rounds=rounds, micro_batch=1)


def facts(found: Benchmark) -> dict[str, Any]:
    """What the table needs of one row each, and why engines are missing."""
    rows = {
        row.name: {
            "ms": 1e3 * row.times.median,
            "spread": [1e3 * row.times.low, 1e3 * row.times.high],
            "error": row.error,
            "rate": found.batch / row.times.median,
            "speedup": found.speedup(row.name),
        }
        for row in found.rows
    }
    for name, report in found.layers.items():
        could = [row for row in report.rows if row.pattern is not None]
        held, dense = (sum(getattr(r, k) for r in could) for k in ("nbytes", "dense_nbytes"))
        stayed = sum(row.kernel is None for row in could)
        rows[name] |= {"bytes": held / dense, "stayed": f"{stayed} of {len(could)}"}
    missing = dict(found.missing)
    return {"rows": rows, "missing": missing, "layers": json.loads(found.to_json())["layers"]}


def section(name: str, found: dict[str, Any]) -> list[str]:
    unit = "tokens" if name == DECODER else "inputs"
    head = (
        f"| | ms | middle half | {unit} a second | best dense / it | error | bytes | stayed dense |"
    )
    lines = ["", f"## {name}", "", head, "|---" * (head.count("|") - 1) + "|"]
    for engine, row in found["rows"].items():
        packed = "bytes" in row
        ratio = f"**{row['speedup']:.2f}**" if packed else f"{row['speedup']:.2f}"
        rest = f"{row['bytes']:.0%} | {row['stayed']}" if packed else " | "
        low, high = row["spread"]
        lines.append(
            f"| {engine} | {row['ms']:.1f} | {low:.1f} to {high:.1f} | {row['rate']:.1f} | {ratio} "
            f"| {row['error']:.0e} | {rest} |"
        )
    lines += [""] if found["missing"] else []
    return lines + [f"{engine}: not run: {why}" for engine, why in found["missing"].items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--patterns", nargs="+", default=list(PATTERNS))
    parser.add_argument("--only", default="", help="models whose name has this in it")
    parser.add_argument("--out", type=Path, help="default: results/models-THREADS.md")
    asked = parser.parse_args()
    nm.keep_memory()
    folder = tempfile.TemporaryDirectory()
    os.environ["XDG_CACHE_HOME"] = folder.name  # Kernels are chosen anew, by this run's times.
    out = asked.out or RESULTS / f"models-{asked.threads}.md"
    settings = {**vars(asked), "out": str(out), "machine": machine(), "isa": nm.native.isa()}
    journal = Journal(out, settings | {"versions": versions("transformers")})
    lines = [
        f"# Packed models against the best dense engine, {asked.threads} thread(s)",
        "",
        "Random weights, pruned by magnitude; the sparse models are run, not estimated. "
        f"Medians of {asked.rounds} rounds and the middle half of them, all engines in turn in one "
        "process. `error`: against dense torch with the same weights, relative to the largest "
        "output. `bytes`: of the N:M weights, as held over dense. `dense`: of these, layers "
        "for which dense torch was faster. `1 at a time`: nm.MicroBatches. `compile` is "
        "torch.compile with frozen weights. Freed memory stays with the process, for all engines "
        "(nm.keep_memory). The "
        "decoder's scores share the dense weight of its words, as GPT-2's do, and stay dense: a "
        "third of all that a token reads.",
    ]
    chosen = [name for name in MODELS if asked.only in name]
    if not chosen:
        raise SystemExit(f"--only {asked.only!r}: none of {', '.join(MODELS)} has this in it")
    for name in chosen:
        if name not in journal.found:
            found = measure(name, asked.patterns, asked.threads, asked.rounds)
            journal.put(name, facts(found))
        lines += section(name, journal.found[name])
        print("\n".join(section(name, journal.found[name])), flush=True)
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    lines += [
        "",
        *machine(),
        f"{versions('transformers')}. Instruction set: {nm.native.isa()}.",
        f"Command: `python benchmarks/{command}`, {datetime.date.today()}.",
    ]
    journal.close(out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
