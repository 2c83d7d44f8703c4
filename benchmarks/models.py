"""How fast a whole packed model is: ours against the best dense engine.

    pip install transformers onnx onnxruntime openvino     # what is missing is left out, and said
    python benchmarks/models.py --threads 1                # writes results/models-1.md

The sparse models really run; nothing is estimated. Weights are random and pruned by magnitude. All
engines take turns in one process; medians are compared, and our outputs are checked against the
sparse model in plain torch in the same run.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import sys
from pathlib import Path

import torch
import torchvision
from engines import ENGINES, Run, exported, installed, medians, versions
from machine import machine
from torch import Tensor, nn

import nmsparsity as nm

RESULTS = Path(__file__).parent / "results"
PATTERNS = ("2:4", "1:4", "1:8", "1:16")


def resnet50() -> tuple[nn.Module, Tensor]:
    return torchvision.models.resnet50(), torch.randn(1, 3, 224, 224)


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


def bert() -> tuple[nn.Module, Tensor]:
    return Bert(), torch.randn(1, 128, 768)


MODELS = {
    "ResNet-50, 224x224, batch 1": resnet50,
    "ViT-B/16, 224x224, batch 1": vit,
    "BERT-base, 128 tokens, batch 1": bert,
}


def dense_engines(model: nn.Module, x: Tensor, threads: int) -> dict[str, Run]:
    runs: dict[str, Run] = {"torch": lambda: model(x)}
    if x.dim() == 4:
        other, last = copy.deepcopy(model), x.contiguous(memory_format=torch.channels_last)
        other = other.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        runs["torch channels_last"] = lambda: other(last)
    for name in filter(installed, ENGINES):
        runs[name] = ENGINES[name](exported(model, x), x, threads)
    return runs


def by_us(model: nn.Module, x: Tensor, pattern: str) -> tuple[Run, float, float, int]:
    """Our run, its error, packed over dense bytes, and how many layers stayed dense."""
    sparse = copy.deepcopy(model)
    nm.prune(sparse, pattern)
    expected = sparse(x)
    if x.dim() == 4:
        sparse = sparse.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=torch.channels_last)
    packed = nm.compress(sparse, x)
    rows = nm.compressed_report(packed).rows
    error = float((packed(x) - expected).abs().max() / expected.abs().max())
    bytes_ = sum(row.nbytes for row in rows) / sum(row.dense_nbytes for row in rows)
    return lambda: packed(x), error, bytes_, sum(row.kernel is None for row in rows)


@torch.no_grad()
def measure(name: str, threads: int, rounds: int) -> list[str]:
    torch.manual_seed(0)
    model, x = MODELS[name]()
    model.eval()
    runs = dense_engines(model, x, threads)
    dense = list(runs)
    facts = {}
    for pattern in PATTERNS:
        runs[pattern], *facts[pattern] = by_us(model, x, pattern)
    times = medians(runs, rounds)
    best = min(dense, key=lambda engine: times[engine])
    lines = ["", f"## {name}", "", "| | ms | best dense / it | error | bytes | stayed dense |"]
    lines.append("|---|---|---|---|---|---|")
    for engine, seconds in times.items():
        ratio = f"{times[best] / seconds:.2f}"
        if engine in facts:
            error, bytes_, stayed = facts[engine]
            rest = f"**{ratio}** | {error:.0e} | {bytes_:.0%} | {stayed}"
        else:
            rest = f"{ratio} | | |"
        lines.append(f"| {engine} | {seconds * 1e3:.1f} | {rest} |")
    print("\n".join(lines), flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="models whose name has this in it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = [
        f"# Packed models against the best dense engine, {options.threads} thread(s)",
        "",
        "Random weights, pruned by magnitude; the sparse models are run, not estimated. "
        f"Medians of {options.rounds} rounds, all engines in turn in one process. `error`: against "
        "the same sparse model in plain torch, relative to the largest output. `bytes`: of the "
        "weights that could be packed, packed over dense. `stayed dense`: of these, layers for "
        "which dense torch was faster.",
    ]
    for name in MODELS:
        if options.only in name:
            lines += measure(name, options.threads, options.rounds)
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    lines += [
        "",
        *machine(),
        f"{versions('transformers')}. Instruction set: {nm.native.isa()}.",
        f"Command: `python benchmarks/{command}`, {datetime.date.today()}.",
    ]
    (RESULTS / f"models-{options.threads}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
