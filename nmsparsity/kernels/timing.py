"""How long calls take, measured fairly: in turns, so that a slow moment hits all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

_SMALL, _MOST = 1 << 20, 64 << 20
_BUDGET = 0.02
_REPEATS = 5
_HOPELESS = 8.0


class Others:
    """The rest of a model: what it reads between two calls of one layer, and leaves in the caches.

    A layer that is timed again and again finds its weight in the cache; in a model that is larger
    than the cache it never does. Nothing is read for a model of less than a MiB.

    Args:
        nbytes: of the model's weights; rounded down to a power of two, and 64 MiB at most.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = 0 if nbytes < _SMALL else min(1 << nbytes.bit_length() - 1, _MOST)
        self._memory = torch.ones(self.nbytes // 4)

    def run(self, *warm: Tensor) -> None:
        """Read all that memory; after it what the layer before has just written."""
        if self.nbytes:
            for memory in (self._memory, *warm):
                memory.sum()


def medians(
    calls: Mapping[str, Callable[[], object]], between: Callable[[], object] | None = None
) -> dict[str, float]:
    """The median milliseconds of every call: at least 5 turns, and about 20 ms each.

    Each is called once before, unmeasured; ``between`` before every measured call. One whose second
    call takes 8 times as long as the fastest is not called again: its one time is its answer.

    >>> list(medians({"nothing": lambda: None}))
    ['nothing']
    """
    for call in calls.values():
        call()
    times = {name: [_seconds(call, between)] for name, call in calls.items()}
    limit = _HOPELESS * min(first[0] for first in times.values())
    hopeful = {name: call for name, call in calls.items() if times[name][0] <= limit}
    end = perf_counter() + _BUDGET * len(hopeful)
    turns = 1
    while turns < _REPEATS or perf_counter() < end:
        for name, call in hopeful.items():
            times[name].append(_seconds(call, between))
        turns += 1
    return {name: 1e3 * median(measured) for name, measured in times.items()}


def _seconds(call: Callable[[], object], between: Callable[[], object] | None) -> float:
    if between is not None:
        between()
    start = perf_counter()
    call()
    return perf_counter() - start
