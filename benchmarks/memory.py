"""What memory a packed model takes: resident when loaded, and the most there is while it runs.

    python benchmarks/memory.py                        # writes results/memory.md
    python benchmarks/memory.py --only BERT --patterns 1:4 --out /tmp/quick.md     # a quick look

Every number is of a fresh process, as Linux tells (VmRSS, VmHWM). A model is pruned, packed with
the kernel by name and written; another process reads it and runs it once. `held` counts the bytes
of all tensors of the loaded model. What the process holds besides the model, interpreter and
libraries, is measured in one that loads nothing and is subtracted. The peak of a run is over
a start anew after the loading.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from machine import machine
from models import DECODER, MODELS
from torch import Tensor, nn

import nmsparsity as nm
from nmsparsity.bench.flat import call
from nmsparsity.bench.memory import highest, reset_peak, settled
from nmsparsity.bench.progress import Progress

RESULTS = Path(__file__).parent / "results"
PATTERNS = ("2:4", "1:4", "1:8", "1:16")
CASES = {
    "ResNet-50": "ResNet-50, 224x224, batch 1",
    "ResNet-50, batch 16": "ResNet-50, 224x224, batch 16",
    "ViT-B/16": "ViT-B/16, 224x224, batch 1",
    "BERT-base": "BERT-base, 128 tokens, batch 1",
    "Decoder": DECODER,
}


def made(case: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    make = MODELS[CASES[case]]
    if make is not None:
        model, x = make()
        return model.eval(), x
    from decoder import Decoder

    decoder = Decoder().eval()
    return decoder, decoder.example()


def write(case: str, pattern: str, path: Path) -> None:
    """A file with the whole model, as a process that only runs it finds it."""
    model, x = made(case)
    if pattern != "dense":
        nm.prune(model, pattern)
        model = nm.compress(model, backend="native")
    torch.save((model, x), path)


@torch.no_grad()
def look(path: Path | None) -> dict[str, int]:
    """Load a model, run it, and tell what this process takes; without one, what it takes anyway."""
    torch.set_num_threads(1)
    if path is None:
        nn.Linear(8, 8)(torch.ones(8, 8))
        return {"resident": settled() or 0}
    # Written by this script a moment ago.
    model, x = torch.load(path, weights_only=False)
    resident = settled() or 0
    call(model, x)
    reset_peak()
    call(model, x)
    return {"held": held(model), "resident": resident, "peak": highest(), "after": settled() or 0}


def held(model: nn.Module) -> int:
    """The bytes of all tensors, each memory once."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    return sum(
        {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values()
    )


def apart(*words: str) -> dict[str, int]:
    """Do one thing in a fresh process."""
    done = subprocess.run(
        [sys.executable, __file__, *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr.strip().splitlines()[-1]}")
    said: dict[str, int] = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
    return said


def rows(case: str, patterns: list[str], bare: int, progress: Progress) -> list[str]:
    """Dense, then every pattern."""
    lines, dense = [], {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        for pattern in ("dense", *patterns):
            apart("--write", case, pattern, str(path))
            found = apart("--look", str(path))
            its = {
                "held": found["held"],
                "loaded": found["resident"] - bare,
                "running": found["peak"] - bare,
            }
            dense = dense or its
            cells = (f"{its[k] / 1e6:,.1f} ({its[k] / dense[k]:.0%})" for k in its)
            lines.append(f"| {case} | {pattern} | {' | '.join(cells)} |")
            progress.step(f"{case} {pattern}")
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--patterns", nargs="+", default=list(PATTERNS))
    parser.add_argument("--only", default="", help="models whose name has this in it")
    parser.add_argument("--out", type=Path, default=RESULTS / "memory.md")
    parser.add_argument("--write", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--look", nargs="?", const="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.write:
        return write(asked.write[0], asked.write[1], Path(asked.write[2]))
    if asked.look is not None:
        return print(json.dumps(look(Path(asked.look) if asked.look else None)))
    bare = apart("--look")["resident"]
    cases = [case for case in CASES if asked.only in case]
    lines = [
        "# Memory of packed models",
        "",
        "Megabytes (1e6), and percent of dense. `held`: all tensors of the model. `loaded`: by how "
        "much a fresh process grew that loaded it. `running`: the most there was during a run, one "
        f"thread. The {bare / 1e6:,.0f} MB that a process with torch takes anyway are subtracted. "
        'Random weights, pruned by magnitude; every N:M layer is packed (`backend="native"`).',
        "",
        "| model | pattern | held | loaded | running |",
        "|---|---|---|---|---|",
    ]
    with Progress(len(cases) * (1 + len(asked.patterns))) as progress:
        for case in cases:
            lines += rows(case, asked.patterns, bare, progress)
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    lines += ["", *machine(), f"Instruction set: {nm.native.isa()}."]
    lines.append(f"Command: `python benchmarks/{command}`, {datetime.date.today()}.")
    beside = asked.out.with_suffix(".tmp")
    beside.write_text("\n".join(lines) + "\n")
    beside.replace(asked.out)


if __name__ == "__main__":
    main()
