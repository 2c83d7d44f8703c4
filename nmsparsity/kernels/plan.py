"""How the native kernels go about one problem and input shape: measured once, kept."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nmsparsity.kernels.timing import Others
from nmsparsity.native import isa
from nmsparsity.native.library import multiply
from nmsparsity.native.product import COLUMNS, TOKENS, WINDOW, Product

_INPUTS = 24576  # bytes of the first cache for inputs where the weights stream through
_PARTS = (2 / 3, 1 / 3, 1.0)  # of the first cache, for a tile of inputs
_WORTH_MEASURING = 2_000_000  # multiply-adds; below that the first plan is as good
_ROUNDS = 5
_HOPELESS = 1.25  # times the fastest: not worth another round
_AS_GOOD = 1.03  # times the fastest: the likelier one is taken
_BETWEEN = 4 * 2**20  # bytes that other layers take of the caches between two calls, at least


@dataclass(frozen=True)
class Plan:
    """The order of the work; results do not depend on it, to the last bit.

    Attributes:
        mode: ``COLUMNS``, lanes are pixels, or ``TOKENS``, lanes are output rows.
        vectors: vectors of pixels in a tile, or pixels at a time.
        depth: windows of inputs that a tile has in the first cache.
        turns: tiles of pixels that share the weights in the cache; ``TOKENS`` only.
    """

    mode: int
    vectors: int
    depth: int
    turns: int = 1

    def set(self, product: Product) -> None:
        """Have the product follow this plan, in place."""
        product.mode, product.vectors = self.mode, self.vectors
        product.depth, product.turns = self.depth, self.turns


def plans(product: Product, lanes: int) -> list[Plan]:
    """What is worth trying, the most likely one first."""
    pixels = product.images * product.out_height * product.out_width
    step = math.lcm(product.slots, 8) // product.slots  # windows that fill whole words
    # With 16 lanes, one instruction picks an input for every lane; with fewer it takes many.
    picks = lanes == WINDOW
    found: list[Plan] = []
    if picks or pixels < lanes // 2:
        found += _tokens(pixels, product.windows, step)
    if pixels >= (2 * lanes if picks else lanes // 2):
        found += _columns(pixels, product, lanes, step)
    return list(dict.fromkeys(found))


def _columns(pixels: int, product: Product, lanes: int, step: int) -> Iterator[Plan]:
    # Of the inputs of a very sparse weight, most are not read: more of them may wait behind.
    cache = first_cache() * (2 if product.slots < 4 else 1)
    for vectors in (8, 6, 4, 3):
        if vectors > 3 and pixels <= (vectors - 2) * lanes:
            continue
        for part in _PARTS if vectors >= 6 else _PARTS[:1]:
            depth = int(cache * part) // (4 * WINDOW * vectors * lanes)
            yield Plan(COLUMNS, vectors, _whole(depth, product.windows, step))


@functools.cache
def first_cache() -> int:
    """Bytes of the processor's first data cache; 32 KiB where the system does not tell.

    >>> first_cache() >= 8192
    True
    """
    for name in ("index0", "index1"):
        folder = Path("/sys/devices/system/cpu/cpu0/cache") / name
        try:
            kind, size = (folder / "type").read_text(), (folder / "size").read_text()
        except OSError:  # not Linux, or a container without it
            break
        if kind.strip() == "Data" and size.strip().endswith("K"):
            return 1024 * int(size.strip()[:-1])
    return 32768


def _tokens(pixels: int, windows: int, step: int) -> Iterator[Plan]:
    for vectors in (8, 4):
        depth = _whole(_INPUTS // (4 * WINDOW * vectors), windows, step)
        if pixels <= vectors:
            yield Plan(TOKENS, pixels, depth)
            return
        for turns in (16, 4, 1):
            if turns == 1 or pixels > vectors * turns // 4:
                yield Plan(TOKENS, vectors, depth, turns)


def _whole(depth: int, windows: int, step: int) -> int:
    """The depth in whole words, and no more than there is."""
    return min(max(depth // step, 1) * step, windows)


class Planner:
    """Remembers the fastest plan of every problem, size and number of threads.

    Sizes are rounded down to three bits: text of many lengths is not measured length by length.
    """

    def __init__(self) -> None:
        self._known: dict[object, Plan] = {}

    def plan(self, key: object, product: Product, lanes: int) -> Plan:
        """The plan for this product; measured on it when it is met the first time."""
        pixels = product.images * product.out_height * product.out_width
        key = (key, rounded(pixels), product.threads, isa())
        if key not in self._known:
            tried = plans(product, lanes)
            work = pixels * product.rows * product.groups * product.windows * product.slots
            small = work < _WORTH_MEASURING
            self._known[key] = tried[0] if small or len(tried) == 1 else _fastest(tried, product)
        return self._known[key]


def rounded(size: int) -> int:
    """The size with its three leading bits only; up to 16 as it is.

    >>> [rounded(size) for size in (7, 16, 100, 127, 1000)]
    [7, 16, 96, 112, 896]
    """
    shift = max(0, size.bit_length() - 3) if size > 16 else 0
    return size >> shift << shift


def _fastest(tried: list[Plan], product: Product) -> Plan:
    """The first whose median is as good as the lowest; they take turns: disturbances meet all."""
    times: dict[Plan, list[float]] = {plan: [] for plan in tried}
    others = Others(_BETWEEN * product.threads)
    for _ in range(_ROUNDS):
        for plan in tried:
            others.run()
            times[plan].append(_seconds(plan, product))
        limit = _HOPELESS * min(min(times[plan]) for plan in tried)
        tried = [plan for plan in tried if min(times[plan]) <= limit]
    medians = {plan: statistics.median(times[plan]) for plan in tried}
    limit = _AS_GOOD * min(medians.values())
    return next(plan for plan in tried if medians[plan] <= limit)


def _seconds(plan: Plan, product: Product) -> float:
    plan.set(product)
    start = time.perf_counter()
    multiply(product)
    return time.perf_counter() - start
