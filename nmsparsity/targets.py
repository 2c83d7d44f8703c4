"""Which weights of a model get which pattern, and why not the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias, get_args

from torch import nn

from nmsparsity.exceptions import exceptions, memory
from nmsparsity.pattern import Axis, Pattern
from nmsparsity.registry import near
from nmsparsity.sites import Site, sites, unfit

Rule: TypeAlias = str | type[nn.Module] | Callable[[str, nn.Module], bool]
Rules: TypeAlias = Rule | Iterable[Rule] | None
Patterns: TypeAlias = str | Pattern | Mapping[str, str | Pattern]
Remainder = Literal["dense", "pad", "error"]
EXCLUDED = "excluded by rule"


@dataclass(frozen=True, eq=False)
class Target:
    """A weight and the pattern it follows."""

    site: Site
    pattern: Pattern


@dataclass(frozen=True)
class Skipped:
    """A weight that stays dense, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Selection:
    """What `select` decided for every weight of a model."""

    targets: list[Target]
    skipped: list[Skipped]

    def without(self, why_not: Callable[[Target], str | None]) -> Selection:
        """The same less the targets for which there is a reason."""
        reasons = [(target, why_not(target)) for target in self.targets]
        left = [Skipped(t.site.name, t.site.shape, why) for t, why in reasons if why is not None]
        return Selection([t for t, why in reasons if why is None], [*self.skipped, *left])

    def require(self, pattern: Patterns) -> None:
        """Refuse to go on without any target, unless the pattern itself means dense (N = M).

        Raises:
            ValueError: with the most frequent reasons.
        """
        if self.targets or all(given.dense for given in _patterns(pattern, None).values()):
            return
        counted = Counter(entry.reason for entry in self.skipped).most_common(3)
        reasons = "; ".join(f"{count} x {reason}" for reason, count in counted)
        raise ValueError(
            f"no weight of the model can be {pattern}: {reasons or 'it has no layers'}"
        )


def select(
    model: nn.Module,
    pattern: Patterns,
    *,
    include: Rules = None,
    exclude: Rules = None,
    remainder: Remainder = "dense",
    axis: Axis | None = None,
) -> Selection:
    """Decide for every weight of the model which pattern it gets, or why it stays dense.

    Args:
        model: any module.
        pattern: one for all, or ``{rule: pattern}`` by name; the first rule that matches counts.
        include: only layers that match one of these rules; naming a layer here also lifts the
            default exceptions (see `nmsparsity.exceptions`).
        exclude: never these.
        remainder: what to do where the axis is no multiple of M: leave the layer ``dense``,
            ``pad`` (the last group is short), or raise an ``error``.
        axis: overrides the axis of every pattern given.

    A rule is a glob on layer names (a name without wildcards also covers what is below it), a
    module type (which covers what is inside such modules too), or a function
    ``(name, module) -> bool`` of single layers.

    Raises:
        ValueError: for a rule that matches nothing, with near names, and for an axis that does
            not divide under ``remainder="error"``.
    """
    if remainder not in get_args(Remainder):
        raise ValueError(f"remainder {remainder!r}: want 'dense', 'pad' or 'error'")
    found = sites(model)
    chooser = _Chooser(_patterns(pattern, axis), _rules(include), _rules(exclude))
    chooser.check(found)
    unusual = {} if include is not None else exceptions(model, found)
    targets, skipped = [], [Skipped(u.name, u.shape, u.reason) for u in unfit(model)]
    for site in found:
        chosen = chooser.choose(site, unusual.get(site.name))
        reason = chosen if isinstance(chosen, str) else _misfit(site, chosen, remainder)
        if reason is None:
            assert isinstance(chosen, Pattern)
            targets.append(Target(site, chosen))
        else:
            skipped.append(Skipped(site.name, site.shape, reason))
    return _without_repeats(targets, skipped)


@dataclass(frozen=True)
class _Chooser:
    patterns: Mapping[str, Pattern]
    include: list[Rule] | None
    exclude: list[Rule] | None

    def choose(self, site: Site, unusual: str | None) -> Pattern | str:
        """The pattern for this weight, or the reason it stays dense."""
        if any(_matches(rule, site) for rule in self.exclude or ()):
            return EXCLUDED
        if self.include is not None and not any(_matches(rule, site) for rule in self.include):
            return "not included by any rule"
        for rule, pattern in self.patterns.items():
            if _matches(rule, site):
                in_full = rule in (site.name, site.module_name)
                return unusual if unusual is not None and not in_full else pattern
        return "no pattern is given for it"

    def check(self, found: list[Site]) -> None:
        """Refuse a rule that matches nothing, or nothing that rules before it have left."""
        for rule in [*self.patterns, *(self.include or ()), *(self.exclude or ())]:
            _check_kind(rule)
            if rule != "*" and not any(_matches(rule, site) for site in found):
                raise ValueError(f"rule {_show(rule)} matches no layer{_suggest(rule, found)}")
        first = [next((r for r in self.patterns if _matches(r, site)), None) for site in found]
        for rule in self.patterns:
            if rule != "*" and rule not in first:
                raise ValueError(
                    f"rule {rule!r} does nothing: rules before it match all its layers, and the "
                    "first that matches counts; put it before them"
                )


def _patterns(pattern: Patterns, axis: Axis | None) -> dict[str, Pattern]:
    if isinstance(pattern, Mapping):
        if not pattern:
            raise ValueError("pattern {}: want 'N:M' or {rule: 'N:M'} with one rule at least")
        return {rule: Pattern.parse(text, axis) for rule, text in pattern.items()}
    return {"*": Pattern.parse(pattern, axis)}


def _rules(rules: Rules) -> list[Rule] | None:
    if rules is None:
        return None
    if isinstance(rules, (str, type)) or callable(rules):
        return [rules]
    return list(rules) if isinstance(rules, Iterable) else [rules]


def _check_kind(rule: Rule) -> None:
    is_type = isinstance(rule, type) and issubclass(rule, nn.Module)
    is_function = callable(rule) and not isinstance(rule, (type, nn.Module))
    if not (isinstance(rule, str) or is_type or is_function):
        raise ValueError(
            f"rule {rule!r}: want the name of a layer or a glob, a module type, or a function "
            "(name, module) -> bool"
        )


def _matches(rule: Rule, site: Site) -> bool:
    if isinstance(rule, type):
        return any(isinstance(module, rule) for module in (site.module, *site.parents))
    if not isinstance(rule, str):
        return bool(rule(site.module_name, site.module))
    names = (site.module_name, site.name)
    return any(fnmatchcase(name, rule) or name.startswith(f"{rule}.") for name in names)


def _misfit(site: Site, pattern: Pattern, remainder: Remainder) -> str | None:
    """Why this weight cannot follow the pattern, if it cannot."""
    if pattern.dense:
        return f"pattern {pattern} keeps every weight"
    length = site.layout.length(site.shape, pattern.axis)
    if length % pattern.m == 0 or remainder == "pad":
        return None
    reason = f"{length} weights along the {pattern.axis} axis are no multiple of {pattern.m}"
    if remainder == "error":
        raise ValueError(
            f"layer {site.name!r} {list(site.shape)}: {reason}; exclude it, choose another M, "
            "or use remainder='pad' or 'dense'"
        )
    return reason


def _without_repeats(targets: list[Target], skipped: list[Skipped]) -> Selection:
    """One target for a parameter, or memory, that stands in several places."""
    first: dict[Hashable, Target] = {}
    kept = []
    for target in targets:
        other = first.setdefault(memory(target.site.parameter), target)
        if other is target:
            kept.append(target)
            continue
        what = "parameter" if other.site.parameter is target.site.parameter else "memory"
        if _order(other.site) != _order(target.site):
            raise ValueError(
                f"layers {other.site.name!r} {list(other.site.shape)} and {target.site.name!r} "
                f"{list(target.site.shape)} are one {what} in two shapes or with two input "
                "dimensions, which no mask can serve; exclude them"
            )
        reason = f"the same {what} as {other.site.name!r}, which is listed"
        skipped.append(Skipped(target.site.name, target.site.shape, reason))
    return Selection(kept, skipped)


def _order(site: Site) -> Hashable:
    """How groups lie in the memory of a weight."""
    return site.layout, site.shape, site.parameter.stride()


def _show(rule: Rule) -> str:
    return repr(rule) if isinstance(rule, str) else getattr(rule, "__name__", repr(rule))


def _suggest(rule: Rule, found: list[Site]) -> str:
    if not isinstance(rule, str):
        return f"; the model has {len(found)} layers that can be N:M"
    names = [site.module_name or site.name for site in found]
    return near(rule, names) or f"; known: {', '.join(names[:8])}"
