"""What was measured on this machine before: a small file in the user's cache folder."""

from __future__ import annotations

import json
import os
import platform
import secrets
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch

from nmsparsity import native
from nmsparsity.native.library import built

_CPU_INFO = Path("/proc/cpuinfo")


class Choices:
    """Milliseconds by question; read at the start, written by `save`.

    A question counts only on the machine, instruction set, number of threads and versions of
    torch and of this library that it was answered on. A damaged file is ignored with a warning
    and replaced; a folder that cannot be written costs nothing but the measuring next time.

    >>> choices = Choices(Path("/nowhere/choices.json"))
    >>> choices.put(["fc"], {"dense": 1.0, "native": 0.5})
    >>> choices.get(["fc"]), choices.get(["conv"])
    ({'dense': 1.0, 'native': 0.5}, None)
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_path()
        self._answers = _read(self.path)
        self._new: dict[str, dict[str, float]] = {}

    def get(self, question: list[Any]) -> dict[str, float] | None:
        """The times measured before, or None."""
        return self._answers.get(_key(question))

    def put(self, question: list[Any], times: dict[str, float]) -> None:
        """Note what was measured."""
        self._answers[_key(question)] = self._new[_key(question)] = times

    def save(self) -> None:
        """Write what is new, together with what others have written meanwhile."""
        if not self._new:
            return
        text = json.dumps(_read(self.path) | self._new, indent=0, sort_keys=True)
        beside = self.path.with_name(f".choices-{secrets.token_hex(8)}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(text)
            os.replace(beside, self.path)
        except OSError as error:
            warnings.warn(
                f"{self.path}: measurements could not be kept ({error}); they are made again next "
                "time",
                RuntimeWarning,
                stacklevel=2,
            )
        self._new.clear()


def default_path() -> Path:
    """``$XDG_CACHE_HOME/nmsparsity/choices.json``, or the same in ``~/.cache``."""
    folder = os.environ.get("XDG_CACHE_HOME")
    return (Path(folder) if folder else Path.home() / ".cache") / "nmsparsity" / "choices.json"


def _read(path: Path) -> dict[str, dict[str, float]]:
    try:
        answers = json.loads(path.read_text())
    except OSError:
        return {}
    except ValueError:
        answers = None
    if _sound(answers):
        return answers  # type: ignore[no-any-return]
    warnings.warn(
        f"{path}: damaged, ignored and written anew: layers are measured again",
        RuntimeWarning,
        stacklevel=3,
    )
    return {}


def _sound(answers: object) -> bool:
    return isinstance(answers, dict) and all(
        isinstance(times, dict)
        and len(times) > 1
        and "dense" in times
        and all(type(ms) is float for ms in times.values())
        for times in answers.values()
    )


def _key(question: list[Any]) -> str:
    version = sys.modules["nmsparsity"].__version__
    here = [_cpu(), native.isa(), built(), torch.get_num_threads(), torch.__version__, version]
    return json.dumps([*here, *question], separators=(",", ":"))


_NAMED = ("model name", "cpu family", "model")  # servers of several generations share a name


@cache
def _cpu() -> str:
    """The model of the processor."""
    lines = _CPU_INFO.read_text().splitlines() if _CPU_INFO.exists() else []
    said: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        said.setdefault(name.strip(), value.strip())
    named = " ".join(said[name] for name in _NAMED if name in said)
    return named or platform.processor() or platform.machine()
