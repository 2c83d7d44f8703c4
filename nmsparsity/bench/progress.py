"""A progress bar of one line, on a terminal only."""

from __future__ import annotations

import sys
from types import TracebackType

_WIDTH = 30


class Progress:
    """Counts steps; draws them on stderr when that is a terminal, else is silent.

    >>> with Progress(2) as progress:
    ...     progress.step("first")
    ...     progress.step("second")
    >>> progress.done
    2

    Args:
        total: how many steps there will be.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0

    def step(self, about: str) -> None:
        """One more is done; ``about`` says what goes on."""
        self.done += 1
        filled = _WIDTH * min(self.done, self.total) // max(self.total, 1)
        bar = "=" * filled + " " * (_WIDTH - filled)
        self._draw(f"[{bar}] {self.done}/{self.total} {about}")

    def say(self, about: str) -> None:
        """What goes on now, where it is not known how long."""
        self._draw(about)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._draw("")

    def _draw(self, line: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{line:.100}", end="", file=sys.stderr, flush=True)
