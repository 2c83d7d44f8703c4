"""Telemetry: how much the masks change while a network trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nmsparsity.layout import Layout
from nmsparsity.pattern import Pattern
from nmsparsity.table import table


class Masked(Protocol):
    """What telemetry needs of a weight."""

    name: str
    pattern: Pattern
    layout: Layout

    @property
    def rest(self) -> float: ...

    def current_mask(self) -> Tensor: ...


@dataclass(frozen=True)
class Snapshot:
    """One mask, a bit per weight."""

    bits: np.ndarray
    shape: tuple[int, ...]

    @classmethod
    def of(cls, mask: Tensor) -> Snapshot:
        return cls(np.packbits(mask.cpu().numpy().reshape(-1)), tuple(mask.shape))

    def flips(self, later: Snapshot) -> Tensor:
        """Which weights changed sides, as a bool tensor."""
        count = int(np.prod(self.shape, dtype=np.int64))
        changed = np.unpackbits(self.bits ^ later.bits, count=count).astype(bool)
        return torch.from_numpy(changed).reshape(self.shape)

    def sad(self, later: Snapshot) -> int:
        """Sum of absolute differences of two masks: how many elements differ."""
        return _ones(self.bits ^ later.bits)

    @property
    def kept(self) -> int:
        return _ones(self.bits)


@dataclass(frozen=True)
class Change:
    """How one mask changed.

    Attributes:
        name: the weight.
        size: its number of elements.
        sad: mask elements that differ between the two points in training, the paper's SAD,
            ``||E_j - E_i||_1``: a count.
        flip_rate: share of elements that changed in one single step, the one that followed the
            first point, or a resume after it (arXiv 2404.01847); None before there was one.
        density: share of elements that count now: kept, or pruned by and by and not yet gone.
        groups_changed: share of the groups with any difference.
    """

    name: str
    size: int
    sad: int
    flip_rate: float | None
    density: float
    groups_changed: float

    @property
    def sad_normalized(self) -> float:
        """SAD divided by the number of elements."""
        return self.sad / self.size if self.size else 0.0


@dataclass(frozen=True)
class Telemetry:
    """What changed between two points in training; prints as a table.

    Attributes:
        rows: one `Change` per sparse weight.
        steps: optimizer steps between the two points.
        step: optimizer steps done at the second point.
    """

    rows: Sequence[Change]
    steps: int
    step: int

    @property
    def sad(self) -> int:
        """SAD of the whole network, a count."""
        return sum(row.sad for row in self.rows)

    @property
    def size(self) -> int:
        return sum(row.size for row in self.rows)

    @property
    def sad_normalized(self) -> float:
        """SAD of the whole network divided by its number of maskable weights."""
        return self.sad / self.size if self.size else 0.0

    @property
    def density(self) -> float:
        """Share of the maskable weights that is kept."""
        return sum(row.density * row.size for row in self.rows) / self.size if self.size else 1.0

    @property
    def flip_rate(self) -> float | None:
        """Share of all mask elements that changed in one step, where that was seen."""
        seen = [row for row in self.rows if row.flip_rate is not None]
        size = sum(row.size for row in seen)
        return sum((row.flip_rate or 0.0) * row.size for row in seen) / size if size else None

    def __str__(self) -> str:
        rows = [
            (
                row.name,
                f"{row.size:,}",
                f"{row.sad:,}",
                f"{row.sad_normalized:.4f}",
                "-" if row.flip_rate is None else f"{row.flip_rate:.5f}",
                f"{row.density:.3f}",
                f"{row.groups_changed:.1%}",
            )
            for row in self.rows
        ]
        head = ("weight", "elements", "SAD", "SAD/n", "flip rate", "density", "groups changed")
        return f"{table(head, rows)}\nin {self.steps} steps, up to step {self.step}"


class Watch:
    """Holds the snapshots that telemetry is taken from: a bit per weight, nothing per step."""

    def __init__(self, masked: Sequence[Masked]) -> None:
        self._masked = masked
        self._last = self._snapshots()
        self._steps = 0
        self._before: list[Snapshot] | None = None
        self._flips: list[int] | None = None
        self._due = True

    def restart(self, steps: int) -> None:
        """Begin anew, after a checkpoint was loaded: the next look is from here."""
        self._last, self._steps = self._snapshots(), steps
        self._before = self._flips = None
        self._due = True

    def before_step(self) -> None:
        """Note the masks when the step is the first since the last look."""
        if self._due and self._before is None:
            self._before = self._snapshots()

    def after_step(self) -> None:
        """Count what that one step changed."""
        if self._before is not None:
            now = self._snapshots()
            self._flips = [a.sad(b) for a, b in zip(self._before, now, strict=True)]
            self._before, self._due = None, False

    def look(self, steps: int) -> Telemetry:
        """Everything since the last look; the next look starts here."""
        now = self._snapshots()
        flips: Sequence[int | None] = self._flips or [None] * len(now)
        rows = [
            _change(masked, before, after, count)
            for masked, before, after, count in zip(
                self._masked, self._last, now, flips, strict=True
            )
        ]
        seen = Telemetry(rows, steps - self._steps, steps)
        self._last, self._steps, self._flips, self._due = now, steps, None, True
        return seen

    def state(self) -> dict[str, Any]:
        """The last look, for a checkpoint: its step, and the bits of its masks by weight."""
        last = zip(self._masked, self._last, strict=True)
        return {
            "steps": self._steps,
            "masks": {masked.name: torch.from_numpy(seen.bits.copy()) for masked, seen in last},
        }

    def resume(self, state: dict[str, Any]) -> None:
        """The next look counts from that of a `state`, if it is of masks of these sizes."""
        given = [state["masks"].get(masked.name) for masked in self._masked]
        if any(
            bits is None or bits.numel() != seen.bits.size
            for bits, seen in zip(given, self._last, strict=True)
        ):
            return
        self._steps = int(state["steps"])
        self._last = [
            Snapshot(bits.cpu().numpy().copy(), seen.shape)
            for bits, seen in zip(given, self._last, strict=True)
        ]

    def _snapshots(self) -> list[Snapshot]:
        return [Snapshot.of(masked.current_mask()) for masked in self._masked]


def _change(masked: Masked, before: Snapshot, after: Snapshot, flips: int | None) -> Change:
    flipped = before.flips(after)
    groups = masked.pattern.counts(flipped, masked.layout)
    size = flipped.numel()
    return Change(
        name=masked.name,
        size=size,
        sad=before.sad(after),
        flip_rate=None if flips is None or not size else flips / size,
        density=after.kept / size if size and not masked.rest else 1.0,
        groups_changed=float((groups > 0).double().mean()) if groups.numel() else 0.0,
    )


def _ones(bits: np.ndarray) -> int:
    return int(np.unpackbits(bits).sum(dtype=np.int64))
