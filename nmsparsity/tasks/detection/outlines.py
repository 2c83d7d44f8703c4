"""COCO's two ways to write a mask, polygons and run lengths, and what is wrong with one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Segmentation: TypeAlias = list[list[float]] | dict[str, Any]


def why_no_mask(segmentation: Any, width: int, height: int) -> str | None:
    """Why this is no mask of an image of this size; None if it is one.

    Polygons may reach over the image's border by its size; further out, they would take memory
    without limit when they are filled.

    >>> why_no_mask([[0, 0, 2, 0, 2, 2]], 3, 3)
    >>> why_no_mask({"size": [2, 3], "counts": [1, 4]}, 3, 2)
    'a mask of 5 pixels, its image has 6'
    """
    if isinstance(segmentation, Mapping):
        return _why_no_runs(segmentation, width, height)
    if not isinstance(segmentation, list):
        return f"the segmentation {segmentation!r:.40}: want polygons or run lengths"
    for polygon in segmentation:
        if not (isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0):
            return "a polygon that is no list of three or more x, y pairs"
        if not all(map(is_number, polygon)):
            return "a polygon with coordinates that are no numbers"
        for values, side in ((polygon[::2], width), (polygon[1::2], height)):
            if min(values) < -side or max(values) > 2 * side:
                return f"a polygon that reaches far out of its image ({min(values)}, {max(values)})"
    return None


def has_area(segmentation: Segmentation) -> bool:
    """Whether a sound segmentation holds anything.

    >>> has_area([[0, 0, 4, 0, 4, 3]]), has_area([[0, 0, 4, 0, 8, 0]])
    (True, False)
    """
    if isinstance(segmentation, Mapping):
        counts = segmentation["counts"]
        runs = read_runs(counts) if isinstance(counts, str) else counts
        return any(run > 0 for run in runs[1::2])
    return any(_twice_area(polygon[::2], polygon[1::2]) != 0 for polygon in segmentation)


def _twice_area(x: Sequence[float], y: Sequence[float]) -> float:
    """The shoelace formula, from the first corner; the sign is that of the direction."""
    across, up = [its - x[0] for its in x], [its - y[0] for its in y]
    return math.fsum(
        across[i] * up[i + 1] - across[i + 1] * up[i] for i in range(1, len(across) - 1)
    )


def is_number(value: object) -> bool:
    """Neither a text nor what JSON writes as NaN or Infinity."""
    return isinstance(value, int | float) and math.isfinite(value)


def _why_no_runs(segmentation: Mapping[str, Any], width: int, height: int) -> str | None:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        return f"a mask of [height, width] {size}, its image is {[height, width]}"
    runs = read_runs(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        return "a mask whose counts are no run lengths"
    if sum(runs) != width * height:
        return f"a mask of {sum(runs)} pixels, its image has {width * height}"
    return None


def read_runs(text: str) -> list[int]:
    """The run lengths in COCO's compressed text: five bits a character, then whether more follow;
    from the fourth on, each is the difference from the one before the last.

    >>> read_runs("06"), read_runs("1212N")
    ([0, 6], [1, 2, 1, 4, -1])
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    # A text that breaks off has no sound last run.
    return [*runs, -1] if shift else runs
