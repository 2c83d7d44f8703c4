"""The learning rate over training: a linear warm-up, then a cosine to 0."""

from __future__ import annotations

import math


def warmup_cosine(step: int, total: int, warmup: int) -> float:
    """The share of the peak learning rate at ``step`` of ``total`` optimizer steps.

    Rises linearly from 0 over the first ``warmup`` steps, then falls on half a cosine to 0 at
    ``total`` (arXiv 1608.03983 without restarts).

    >>> [round(warmup_cosine(step, total=10, warmup=2), 2) for step in (0, 1, 2, 6, 10)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if step < warmup:
        return step / warmup
    share = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
