"""What ``nmsparsity translate`` does."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from nmsparsity.tasks.translation.pairs import read_utf8
from nmsparsity.tasks.translation.translator import read_translator

DESCRIPTION = """
Translate lines of text by a trained network.

  nmsparsity translate runs/multi30k_2of4/seed0 --input test.en --output test.de
  echo "A man is riding a bicycle." | nmsparsity translate model.safetensors

One line in, one line out; an empty line stays empty. A line longer than the network takes is
translated sentence by sentence; a single sentence that is longer is an error. Nothing is cut.
"""


def translate(words: Sequence[str]) -> None:
    """Read lines, write their translations, say on stderr which were stopped at the limit."""
    options = _parser().parse_args(list(words))
    translator = read_translator(
        options.file, options.beam, options.length_penalty, options.compress
    )
    with _source(options.input) as source, _target(options.output) as target:
        lines: Iterable[str] = (line.rstrip("\r\n") for line in source)
        if options.input != "-":
            lines = list(lines)
            translator.check(lines)
        for text in translator(lines):
            # One line out for one line in, whatever the network says.
            target.write(" ".join(text.splitlines()) + "\n")
        target.flush()
    if translator.unfinished:
        stopped = sorted(set(translator.unfinished))
        print(
            f"nmsparsity translate: stopped before their end, at twice the length of the longest "
            f"line translated together with them: {len(stopped)}, first the translation of line "
            f"{stopped[0]}",
            file=sys.stderr,
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nmsparsity translate",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", help="a run folder, a checkpoint or a packed file")
    parser.add_argument("--input", default="-", help="text, UTF-8; '-' reads what is piped in")
    parser.add_argument("--output", default="-", help="where to write; '-' prints")
    parser.add_argument("--beam", type=int, default=4, help="hypotheses kept; 1 is greedy")
    parser.add_argument(
        "--length-penalty", type=float, default=0.6, help="0 favours short translations"
    )
    parser.add_argument(
        "--compress",
        action="store_true",
        help="run N:M layers packed where that is faster here, measured first",
    )
    return parser


@contextmanager
def _source(name: str) -> Iterator[TextIO]:
    if name != "-":
        yield io.StringIO(read_utf8(Path(name)), newline="\n")
    elif sys.stdin is None:
        raise ValueError("there is no standard input; give --input FILE")
    else:
        yield _utf8(sys.stdin)


@contextmanager
def _target(name: str) -> Iterator[TextIO]:
    """The output; a file appears under its name once it is whole."""
    if name == "-":
        yield _utf8(sys.stdout)
        return
    if Path(name).is_dir() or not Path(name).absolute().parent.is_dir():
        raise ValueError(f"--output {name}: want a file in a folder that exists")
    beside = Path(f"{name}.tmp")
    try:
        with beside.open("w", encoding="utf-8", newline="\n") as file:
            yield file
        os.replace(beside, name)
    finally:
        beside.unlink(missing_ok=True)


def _utf8(stream: TextIO) -> TextIO:
    """Text is UTF-8 here, whatever the terminal says, and only line feeds end lines."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8", newline="\n")
    return stream
