"""How long calls take, measured fairly: in turns, so that a slow moment hits all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter

_BUDGET = 0.02
_REPEATS = 5
_HOPELESS = 8.0


def medians(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """The median milliseconds of every call: at least 5 turns, and about 20 ms each.

    Each is called once before, unmeasured. One whose second call takes 8 times as long as the
    fastest is not called again: its one time is its answer.

    >>> list(medians({"nothing": lambda: None}))
    ['nothing']
    """
    for call in calls.values():
        call()
    times = {name: [_seconds(call)] for name, call in calls.items()}
    limit = _HOPELESS * min(first[0] for first in times.values())
    hopeful = {name: call for name, call in calls.items() if times[name][0] <= limit}
    end = perf_counter() + _BUDGET * len(hopeful)
    turns = 1
    while turns < _REPEATS or perf_counter() < end:
        for name, call in hopeful.items():
            times[name].append(_seconds(call))
        turns += 1
    return {name: 1e3 * median(measured) for name, measured in times.items()}


def _seconds(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start
