"""Times of calls that take turns, so that a slow moment hits all of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter, sleep
from typing import Protocol, runtime_checkable

_LEAST = 4e-3  # seconds: shorter calls are repeated within their turn
_WARM = 6e-3  # seconds: a core that slept runs slower for some milliseconds
_LONG = 4e-2  # seconds: longer calls need no warming
_PAUSE = 2e-2  # seconds: threads of the one before, which wait awake, fall asleep

Run = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """Seconds of one call, one number a turn.

    >>> times = Times((3.0, 1.0, 2.0, 4.0, 10.0))
    >>> times.median, times.low, times.high
    (3.0, 2.0, 4.0)
    """

    turns: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.turns)

    @property
    def low(self) -> float:
        """The first quartile: a quarter of the turns were faster."""
        return self._quartiles()[0]

    @property
    def high(self) -> float:
        """The third quartile: a quarter of the turns were slower."""
        return self._quartiles()[2]

    def _quartiles(self) -> list[float]:
        if len(self.turns) == 1:
            return [self.turns[0]] * 3
        return statistics.quantiles(self.turns, n=4, method="inclusive")


@runtime_checkable
class TimesItself(Protocol):
    """A call in another process, which measures there."""

    def __call__(self) -> object: ...

    def seconds(self, repeats: int) -> float:
        """How long so many calls take."""


def interleaved(
    runs: Mapping[str, Run], rounds: int, tick: Callable[[str], None] = lambda name: None
) -> dict[str, Times]:
    """Let calls take turns: A, B, C, A, B, C, ...; each is called two to four times before.

    Between turns is a pause: thread pools wait for their next work awake for some milliseconds, and
    would take the cores from the pool of the next call. A turn begins with calls that are not
    counted, until the core that slept has its clock and caches back.

    Args:
        runs: calls by name.
        rounds: how many turns each has; one turn lasts 4 ms at least.
        tick: is told whose turn has ended.

    Raises:
        ValueError: for fewer than one round.

    >>> {name: len(times.turns) for name, times in interleaved({"a": int, "b": int}, 3).items()}
    {'a': 3, 'b': 3}
    """
    if rounds < 1:
        raise ValueError(f"rounds {rounds}: want 1 or more")
    shortest = {}
    for name, run in runs.items():
        run()
        shortest[name] = _shortest(run)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(_turn(run, shortest[name]))
            tick(name)
    return {name: Times(tuple(turns)) for name, turns in times.items()}


def _turn(run: Run, shortest: float) -> float:
    sleep(_PAUSE)
    repeats = max(1, int(_LEAST / max(shortest, 1e-9)))
    awake = perf_counter() + _WARM
    while shortest < _LONG and perf_counter() < awake:
        _seconds(run, repeats)
    return _seconds(run, repeats)


def _shortest(run: Run) -> float:
    """Seconds of a call: the shortest of three, as others may disturb short ones."""
    shortest = _seconds(run, 1)
    for _ in range(2 if shortest < _LONG else 0):
        shortest = min(shortest, _seconds(run, 1))
    return shortest


def _seconds(run: Run, repeats: int) -> float:
    if isinstance(run, TimesItself):
        return run.seconds(repeats) / repeats
    start = perf_counter()
    for _ in range(repeats):
        run()
    return (perf_counter() - start) / repeats
