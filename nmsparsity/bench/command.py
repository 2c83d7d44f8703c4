"""``nmsparsity bench``."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from nmsparsity.bench.engines import ENGINES, versions
from nmsparsity.bench.machine import machine
from nmsparsity.bench.measure import ALL, benchmark
from nmsparsity.bench.result import Benchmark
from nmsparsity.bench.subject import subject
from nmsparsity.memory import keep_memory

_ABOUT = """
How fast a model is with packed N:M weights, beside dense engines, on this machine.

  nmsparsity bench runs/first                          # what you trained: a run folder,
  nmsparsity bench first.safetensors --batch 1 64      # a checkpoint or a packed file
  nmsparsity bench resnet50 --pattern 2:4 1:16         # what could be gained: random weights,
  nmsparsity bench timm/vit_small_patch16_224 --pattern 1:4     # pruned by magnitude
  nmsparsity bench runs/cells --batch 4                # a detector: images of its validation split
  nmsparsity bench detection/faster_rcnn --pattern 2:4 --input 3x320x480
  nmsparsity bench runs/en-de --batch 1 32     # a translator translates, greedily, by torch
  nmsparsity bench my.module:model --threads 1 --json found.json --plot found.png

A function gives the model, or a pair of model and inputs (a tensor, a tuple, or a dict).

All engines run in one process and take turns; the table has the median, the middle half of the
turns, runs times batch a second, and how many times faster than the fastest dense engine each is.
Memory is by how much the process grew when the engine had taken over the model, and the most there
was while it ran; torch.compile keeps its compiler. Freed memory stays with the process, for every
engine (nm.keep_memory). "error" is the largest difference from dense
torch with the same weights, relative to the largest output. Below stand the layers: which kernel
runs each, milliseconds dense and packed, and why some stay dense. What is not installed is named:
pip install 'nmsparsity[bench]'.
"""


def run(words: Sequence[str]) -> list[Benchmark]:
    """Do what the command line says; print, write, return what was found.

    Raises:
        OSError, ValueError: for what a user can get wrong, in one line.
    """
    options = _parser().parse_args(list(words))
    keep_memory()
    against = [name for name in options.against.split(",") if name]
    for name in against:
        ENGINES[name]
    for path in (options.json, options.plot):
        if path and not Path(path).absolute().parent.is_dir():
            raise FileNotFoundError(f"{path}: there is no folder {Path(path).parent}")
    if options.plot and Path(options.plot).suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--plot {options.plot}: want a file that ends in .png, .svg or .pdf")
    about = subject(options.model, options.input)
    if not about.has_batches and options.batch is not None:
        raise ValueError(f"--batch: {options.model} came with its own inputs")
    if about.engines is not None:
        others = [name for name in against if name not in about.engines]
        against = [name for name in against if name in about.engines]
        if others:
            print(f"not run: {', '.join(others)}: {about.why}\n", flush=True)
    if options.micro_batch is not None and isinstance(about.batch(1), list):
        raise ValueError("--micro-batch: a detector takes a list of images; leave it out")
    found = []
    for size in options.batch or [1]:
        found.append(
            benchmark(
                about.model,
                about.batch(size),
                patterns=options.pattern,
                against=against,
                threads=options.threads,
                rounds=options.rounds,
                backend=options.backend,
                micro_batch=options.micro_batch,
                name=about.name,
            )
        )
        print(found[-1], end="\n\n", flush=True)
    print(*machine(), versions(), sep="\n")
    _write(options.json, lambda path: path.write_text(_json(found, words)))
    if options.plot:
        from nmsparsity.bench.plot import plot_benchmarks

        _write(options.plot, lambda path: plot_benchmarks(found, path))
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nmsparsity bench",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a run folder, file, name, or package.module:function")
    add("--against", default=",".join(ALL), metavar="A,B", help=f"default: {','.join(ALL)}")
    add("--batch", type=_positive, nargs="+", metavar="N", help="one or several; default: 1")
    add("--threads", type=_positive, metavar="N", help="of every engine; default: torch's")
    add("--pattern", nargs="+", default=[], metavar="N:M", help="prune copies to these patterns")
    add("--input", type=_shape, metavar="SHAPE", help="of one input without the batch: 3x224x224")
    add("--rounds", type=_positive, default=15, metavar="N", help="turns each; default: 15")
    add("--backend", default="auto", help="a kernel by name instead of the fastest")
    add("--micro-batch", type=_positive, metavar="N", help="packed, N at a time too: MicroBatches")
    add("--json", metavar="FILE", help="write all that was found")
    add("--plot", metavar="FILE", help="draw it (.png, .svg, .pdf; needs matplotlib)")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: want a whole number of at least 1")
    return int(text)


def _shape(text: str) -> tuple[int, ...]:
    """Sizes with an x in between.

    >>> _shape("3x32x32")
    (3, 32, 32)
    """
    sizes = text.split("x")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r}: want sizes such as 3x224x224")
    return tuple(map(int, sizes))


def _json(found: Sequence[Benchmark], words: Sequence[str]) -> str:
    facts = {
        "machine": machine(),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["nmsparsity bench", *words]),
        "found": [json.loads(one.to_json()) for one in found],
    }
    return json.dumps(facts, indent=1)


def _write(name: str | None, write: Callable[[Path], object]) -> None:
    """Write beside and rename: never half a file."""
    if not name:
        return
    path = Path(name)
    beside = path.with_name(f".{secrets.token_hex(8)}-{path.name}")
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    print(f"wrote {path}", file=sys.stderr)
