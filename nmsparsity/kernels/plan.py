"""How the native kernels go about one problem and input shape: measured once, kept."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

from nmsparsity.native import isa
from nmsparsity.native.library import multiply
from nmsparsity.native.product import COLUMNS, TOKENS, WINDOW, Product

_FIRST_CACHE = 32768
_SECOND_CACHE = 262144  # what activations may take of it
_WORTH_MEASURING = 2_000_000  # multiply-adds; below that the first plan is as good
_ROUNDS = 3


@dataclass(frozen=True)
class Plan:
    """The order of the work; results do not depend on it, to the last bit.

    Attributes:
        mode: ``COLUMNS``, lanes are pixels, or ``TOKENS``, lanes are output rows.
        vectors: vectors of pixels in a tile, or pixels at a time.
        depth: windows of inputs in a tile, or tiles that share the weights in the cache.
    """

    mode: int
    vectors: int
    depth: int = 1

    def set(self, product: Product) -> None:
        """Have the product follow this plan, in place."""
        product.mode, product.vectors, product.depth = self.mode, self.vectors, self.depth


def plans(product: Product, lanes: int) -> Iterator[Plan]:
    """What is worth trying, the most likely one first."""
    pixels = product.images * product.out_height * product.out_width
    if product.x_channel == product.y_channel == 1 and product.channels % WINDOW == 0:
        turns = max(1, min(16, _SECOND_CACHE // (4 * 8 * product.channels)))
        yield Plan(TOKENS, min(8, pixels), turns)
        if pixels > 8:
            yield Plan(TOKENS, 8)
            yield Plan(TOKENS, 4, turns)
        if pixels < 2 * lanes:
            return
    step = math.lcm(product.slots, 8) // product.slots  # windows that fill whole words
    for vectors in (8, 6, 4, 3):
        depth = _FIRST_CACHE // (4 * WINDOW * vectors * lanes)
        depth = min(max(depth // step, 1) * step, product.windows)
        if vectors == 3 or pixels > (vectors - 2) * lanes:
            yield Plan(COLUMNS, vectors, depth)


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
            tried = list(plans(product, lanes))
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
    """The one with the lowest median; they take turns, so that a disturbance meets all."""
    times: dict[Plan, list[float]] = {plan: [] for plan in tried}
    for _ in range(_ROUNDS):
        for plan in tried:
            plan.set(product)
            start = time.perf_counter()
            multiply(product)
            times[plan].append(time.perf_counter() - start)
    return min(times, key=lambda plan: statistics.median(times[plan]))
