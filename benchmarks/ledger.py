"""A file of finished trainings, one a line, and the loop that does those that are missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

Line = dict[str, Any]


class Run(Protocol):
    """A training by name."""

    @property
    def key(self) -> str: ...

    @property
    def needs(self) -> str | None:
        """The key of the one that has to be done before."""


def read_lines(path: Path) -> list[Line]:
    """The finished runs; a half-written last line is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]


def append(path: Path, line: Line) -> None:
    """Write down one more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def do_all(
    runs: Sequence[Run],
    train: Callable[[Any], Line],
    path: Path,
    processes: int,
    say: Callable[[Line], str],
) -> None:
    """Do all missing runs, several at a time, each in a process of its own, and write down each.

    Args:
        runs: in order; one that needs another one waits for it.
        train: does one run; can be pickled.
        path: the file.
        processes: at a time.
        say: what to print of a finished one.
    """
    done = {line["key"] for line in read_lines(path)}
    todo = [run for run in runs if run.key not in done]
    print(f"{len(done)} runs done, {len(todo)} to do", flush=True)
    busy: dict[Future[Line], Run] = {}
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        while todo or busy:
            for run in [run for run in todo if run.needs is None or run.needs in done]:
                if len(busy) < processes:
                    busy[pool.submit(train, run)] = run
                    todo.remove(run)
            if not busy:
                raise SystemExit(f"{todo[0].key} needs {todo[0].needs}, which nobody asked for")
            for task in wait(busy, return_when=FIRST_COMPLETED).done:
                append(path, task.result())
                done.add(busy.pop(task).key)
                print(say(task.result()), flush=True)
