"""The command line: train, evaluate, predict, translate, inspect, pack, bench."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from nmsparsity.tasks.needs import need

HELP = """usage: nmsparsity COMMAND [...]

Train, check and store neural networks in which at most N of every M weights are nonzero.

  train     train a network from a recipe, dense or N:M sparse from scratch
  evaluate  count a trained network's answers on the whole validation set
  predict   draw what a trained detector finds on images
  translate lines of text by a trained translator
  inspect   the per-layer table of any checkpoint or packed file: pattern, density, bytes
  pack      write a checkpoint as one packed file, loss-free
  bench     measure a packed model against dense engines: latency, memory, error

A first tour, with the images that come with the repository:

  nmsparsity train --config recipes/classification/fashion_mnist_2of4.yaml \\
      --data.source data/fashion_mnist --run_dir runs/first
  nmsparsity evaluate runs/first
  nmsparsity pack runs/first -o first.safetensors
  nmsparsity inspect first.safetensors
  nmsparsity evaluate first.safetensors
  nmsparsity bench first.safetensors --batch 64

Every command has its own --help. --kind, or kind: in a recipe, says which task it is of:
classification (the default), detection, segmentation, translation. Data sets are looked for in
--data.root, else in the folder that the environment variable NMSPARSITY_DATA names, else in
~/.cache/nmsparsity.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status.

    What a user can get wrong is one line on stderr and status 2, not a traceback.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        from nmsparsity import __version__

        print(f"nmsparsity {__version__}")
        return 0
    if words[0] not in COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(words[0], COMMANDS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        print(f"nmsparsity: unknown command {words[0]!r}{hint} See --help.", file=sys.stderr)
        return 2
    try:
        return COMMANDS[words[0]](words[1:])
    except (ValueError, OSError) as error:
        print(f"nmsparsity {words[0]}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"nmsparsity {words[0]}: interrupted", file=sys.stderr)
        return 130


def train(words: list[str]) -> int:
    need("lightning", "jsonargparse")
    from nmsparsity.tasks.train import STOPPED, prepare, quiet

    quiet()
    run = prepare(words)
    result = run.fit()
    if result is None:
        there = run.folder.last if run.folder.last.exists() else "the beginning"
        print(f"stopped; the same command goes on from {there}")
        return STOPPED
    if run.trainer.is_global_zero:
        print(f"{run.kind.trained(result)}; density {result['density']:.3f}; in {run.folder.path}")
    return 0


def evaluate(words: list[str]) -> int:
    need("lightning", "jsonargparse")
    from nmsparsity.tasks.evaluate import evaluate
    from nmsparsity.tasks.train import quiet

    quiet()
    _, sentence = evaluate(words)
    print(sentence)
    return 0


def predict(words: list[str]) -> int:
    need("lightning", "jsonargparse")
    need("faster_coco_eval", extra="detection")
    from nmsparsity.tasks.detection.predict import predict

    for path in predict(words):
        print(path)
    return 0


def translate(words: list[str]) -> int:
    need("transformers", "tokenizers", extra="translation")
    need("lightning")
    from nmsparsity.tasks.translation.translate import translate

    translate(words)
    return 0


def inspect(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="nmsparsity inspect",
        description="The per-layer table of a checkpoint (.ckpt, .pt, .pth), a .safetensors or "
        "packed file, or a run folder (its best epoch). Patterns that the file declares are "
        "checked; in files of others they are found from the zeros. No code in the file is run.",
    )
    parser.add_argument("file")
    options = parser.parse_args(words)
    from nmsparsity.tasks.inspection import inspect

    found = inspect(options.file)
    print(found)
    return 0 if found.ok else 1


def pack(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="nmsparsity pack",
        description="Write the weights of a checkpoint, or of a run folder's best epoch, as one "
        "packed file: kept values and positions, checksummed. Loss-free: nothing is pruned.",
    )
    parser.add_argument("checkpoint")
    parser.add_argument("-o", "--output", required=True, help="the file to write, .safetensors")
    options = parser.parse_args(words)
    from nmsparsity.tasks.packing import pack

    size, dense = pack(options.checkpoint, options.output)
    print(f"{options.output}: {size:,} bytes, {size / dense:.1%} of {dense:,} dense")
    return 0


def bench(words: list[str]) -> int:
    from nmsparsity.bench.command import run

    run(words)
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "translate": translate,
    "inspect": inspect,
    "pack": pack,
    "bench": bench,
}

if __name__ == "__main__":
    sys.exit(main())
