"""The per-layer report: which pattern, does it hold, and why the others stay dense."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import nn

from nmsparsity.exceptions import memory
from nmsparsity.packed.choice import given
from nmsparsity.packed.infer import shown
from nmsparsity.pattern import Axis, Pattern
from nmsparsity.promises import declared, pending
from nmsparsity.shards import check_memory, local_shard
from nmsparsity.sites import canonical, sites, unfit, unwrap
from nmsparsity.table import table
from nmsparsity.targets import Patterns, Skipped, Target


@dataclass(frozen=True)
class Row:
    """One weight of a model.

    Attributes:
        name: of the weight, ``"layer1.0.conv1.weight"``.
        shape: ``[out, in, ...]``.
        pattern: ``"2:4"``, or None for a dense weight.
        axis: along which the groups run.
        density: share of nonzeros.
        bad_groups: groups with more than N nonzeros, or with NaN or infinity.
        groups: all groups.
        reason: why the weight is dense, or what is wrong with it.
        repeats: its elements are counted in another row: it is tied, or computed from others.
    """

    name: str
    shape: tuple[int, ...]
    pattern: str | None
    axis: str | None
    density: float
    bad_groups: int = 0
    groups: int = 0
    reason: str = ""
    repeats: bool = False

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
        total = sum(row.size for row in self.rows if not row.repeats)
        sparse = sum(row.size for row in self.sparse if not row.repeats)
        bad = [row for row in self.sparse if row.bad_groups]
        share = sparse / total if total else 0.0
        said = f"{len(self.sparse)} of {len(self.rows)} weights are N:M ({share:.1%} of elements)"
        if bad:
            return f"{said}; {len(bad)} do NOT hold, first {bad[0].name!r}: {bad[0].reason}"
        return f"{said}; all hold" if self.sparse else f"{said}: nothing here is sparse"


def describe(
    targets: Sequence[Target], skipped: Sequence[Skipped], model: nn.Module | None = None
) -> Report:
    """The report of weights with known patterns and of those left dense.

    Given the model too, the elements of weights that share memory are counted once.
    """
    rows = [*(_check(target) for target in targets), *(_dense(entry) for entry in skipped)]
    if model is None:
        return Report(rows)
    again = _repeats([row.name for row in rows], model)
    return Report([replace(row, repeats=row.name in again) for row in rows])


def _repeats(names: Sequence[str], model: nn.Module) -> set[str]:
    """The weights whose memory an earlier one has, and those that are no parameter at all."""
    parameters = unwrap(model).named_parameters(remove_duplicate=False)
    memories = {canonical(name): memory(parameter) for name, parameter in parameters}
    first = {memories[name]: name for name in reversed(names) if name in memories}
    return {name for name in names if name not in memories or first[memories[name]] != name}


@torch.no_grad()
def verify(
    model: nn.Module, pattern: Patterns | None = None, *, axis: Axis | None = None
) -> Report:
    """Check that every group of the model's sparse weights really is N:M, of finite numbers.

    Args:
        model: any module, also one that was never sparsified here.
        pattern: what must hold, ``"2:4"`` or ``{rule: "2:4"}``, of the layers that `prune` would
            choose; default: what `sparsify`, `prune` or `load` promised, and for weights without
            a promise whatever pattern they show.
        axis: of the pattern given, as for `sparsify`.

    Raises:
        ValueError: for an axis without a pattern, a rule that matches nothing, and a weight on
            the meta device.

    >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    >>> verify(model, "2:4").ok
    False
    """
    if pattern is not None:
        selection = given(model, pattern, axis)
        return describe(selection.targets, selection.skipped, model)
    if axis is not None:
        raise ValueError(f"axis {axis!r} without a pattern: give both, as in verify(model, '2:4')")
    targets, skipped, known = [], [], declared()
    for site in sites(model):
        check_memory(site.name, site.parameter)
        found = known.get(id(site.parameter))
        found = found or shown(local_shard(site.parameter), site.layout)
        if found is None:
            skipped.append(Skipped(site.name, site.shape, "dense: it shows no pattern"))
        else:
            targets.append(Target(site, found))
    others = [Skipped(entry.name, entry.shape, entry.reason) for entry in unfit(model)]
    return describe(targets, [*skipped, *others], model)


def _check(target: Target) -> Row:
    site, pattern = target.site, target.pattern
    check_memory(site.name, site.parameter)
    weight = local_shard(site.parameter)
    counts = pattern.counts(weight, site.layout)
    bad = int(_bad(counts, weight, target).sum())
    why = first_bad_group(weight, target.pattern, target) if bad else ""
    waiting = pending().get(id(site.parameter)) if bad else None
    return Row(
        site.name,
        site.shape,
        str(pattern),
        pattern.axis,
        int(torch.count_nonzero(weight)) / max(weight.numel(), 1),
        bad,
        counts.numel(),
        f"{waiting} ({why})" if waiting else why,
    )


def first_bad_group(weight: torch.Tensor, pattern: Pattern, target: Target) -> str:
    """Where the pattern first fails, in words."""
    counts = pattern.counts(weight, target.site.layout)
    outer, group, inner = (int(i) for i in _bad(counts, weight, target).nonzero()[0])
    place = f"group {group} of row {outer}, position {inner}"
    count = int(counts[outer, group, inner])
    if count <= pattern.n:
        return f"{place} has NaN or infinity: the training has diverged or the file is damaged"
    return f"{place} has {count} nonzeros, {pattern} allows {pattern.n}"


def _bad(counts: torch.Tensor, weight: torch.Tensor, target: Target) -> torch.Tensor:
    """Which groups have too many nonzeros, or a number that is not finite."""
    finite = torch.isfinite(weight)
    if bool(finite.all()):
        return counts > target.pattern.n
    return (counts > target.pattern.n) | (target.pattern.counts(~finite, target.site.layout) > 0)


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
