"""The per-layer report: which pattern, does it hold, and why the others stay dense."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from nmsparsity.layout import Layout
from nmsparsity.packed.infer import infer
from nmsparsity.pattern import Pattern
from nmsparsity.promises import declared
from nmsparsity.shards import check_memory, local_shard
from nmsparsity.sites import sites, unfit
from nmsparsity.table import table
from nmsparsity.targets import Patterns, Skipped, Target, select


@dataclass(frozen=True)
class Row:
    """One weight of a model.

    Attributes:
        name: of the weight, ``"layer1.0.conv1.weight"``.
        shape: ``[out, in, ...]``.
        pattern: ``"2:4"``, or None for a dense weight.
        axis: along which the groups run.
        density: share of nonzeros.
        bad_groups: groups with more than N nonzeros.
        groups: all groups.
        reason: why the weight is dense, or what is wrong with it.
    """

    name: str
    shape: tuple[int, ...]
    pattern: str | None
    axis: str | None
    density: float
    bad_groups: int = 0
    groups: int = 0
    reason: str = ""

    @property
    def size(self) -> int:
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Report:
    """One row per weight matrix of a model; prints as a table, `to_json` for machines.

    Attributes:
        rows: sparse weights first, then those that are dense and why.
        ok: at least one weight follows a pattern, and every pattern holds.
    """

    rows: Sequence[Row]

    @property
    def sparse(self) -> list[Row]:
        """The rows of weights that have a pattern."""
        return [row for row in self.rows if row.pattern is not None]

    @property
    def ok(self) -> bool:
        return bool(self.sparse) and not any(row.bad_groups for row in self.rows)

    def to_json(self) -> str:
        return json.dumps([asdict(row) for row in self.rows], indent=1)

    def __str__(self) -> str:
        head = ("weight", "shape", "pattern", "axis", "density", "holds", "why")
        return f"{table(head, [_cells(row) for row in self.rows])}\n{self.summary}"

    @property
    def summary(self) -> str:
        """One sentence."""
        total = sum(row.size for row in self.rows)
        sparse = sum(row.size for row in self.sparse)
        bad = [row for row in self.sparse if row.bad_groups]
        share = sparse / total if total else 0.0
        said = f"{len(self.sparse)} of {len(self.rows)} weights are N:M ({share:.1%} of elements)"
        if bad:
            return f"{said}; {len(bad)} do NOT hold, first {bad[0].name!r}: {bad[0].reason}"
        return f"{said}; all hold" if self.sparse else f"{said}: nothing here is sparse"


def describe(targets: Sequence[Target], skipped: Sequence[Skipped]) -> Report:
    """The report of weights with known patterns and of those left dense."""
    rows = [_check(target) for target in targets]
    return Report([*rows, *(_dense(entry) for entry in skipped)])


@torch.no_grad()
def verify(model: nn.Module, pattern: Patterns | None = None) -> Report:
    """Check that every group of the model's sparse weights really is N:M.

    Args:
        model: any module, also one that was never sparsified here.
        pattern: what must hold, ``"2:4"`` or ``{rule: "2:4"}``; default: what `sparsify`, `prune`
            or `load` promised, and for weights without a promise whatever pattern they show.

    >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    >>> verify(model, "2:4").ok
    False
    """
    if pattern is not None:
        selection = select(model, pattern, remainder="pad")
        return describe(selection.targets, selection.skipped)
    targets, skipped, promised = [], [], declared()
    for site in sites(model):
        check_memory(site.name, site.parameter)
        found = promised.get(id(site.parameter))
        found = found or shown(local_shard(site.parameter), site.layout)
        if found is None:
            skipped.append(Skipped(site.name, site.shape, "dense: it shows no pattern"))
        else:
            targets.append(Target(site, found))
    others = [Skipped(entry.name, entry.shape, entry.reason) for entry in unfit(model)]
    return describe(targets, [*skipped, *others])


def shown(weight: torch.Tensor, layout: Layout) -> Pattern | None:
    """The pattern that a weight without a promise shows by its zeros, if it does.

    Most groups that are not empty must have exactly N nonzeros: scattered zeros also leave some
    N:M that saves bytes, such as 19:61, but nobody made it so.
    """
    pattern = infer(weight, layout)
    if pattern is None:
        return None
    counts = pattern.counts(weight, layout)
    filled = counts[counts > 0]
    exact = (filled == pattern.n).sum() * 2 > filled.numel()
    return pattern if bool(exact) else None


def _check(target: Target) -> Row:
    site, pattern = target.site, target.pattern
    weight = local_shard(site.parameter)
    counts = pattern.counts(weight, site.layout)
    bad = int((counts > pattern.n).sum())
    return Row(
        site.name,
        site.shape,
        str(pattern),
        pattern.axis,
        int(torch.count_nonzero(weight)) / max(weight.numel(), 1),
        bad,
        counts.numel(),
        first_bad_group(weight, target.pattern, target) if bad else "",
    )


def first_bad_group(weight: torch.Tensor, pattern: Pattern, target: Target) -> str:
    """Where the pattern first fails, in words."""
    counts = pattern.counts(weight, target.site.layout)
    outer, group, inner = (int(i) for i in (counts > pattern.n).nonzero()[0])
    return (
        f"group {group} of row {outer}, position {inner} has {int(counts[outer, group, inner])} "
        f"nonzeros, {pattern} allows {pattern.n}"
    )


def _dense(entry: Skipped) -> Row:
    return Row(entry.name, entry.shape, None, None, 1.0, reason=entry.reason)


def _cells(row: Row) -> tuple[str, ...]:
    holds = "" if row.pattern is None else ("NO" if row.bad_groups else "yes")
    return (
        row.name,
        "x".join(map(str, row.shape)),
        row.pattern or "dense",
        row.axis or "",
        f"{row.density:.3f}" if row.pattern else "",
        holds,
        row.reason,
    )
