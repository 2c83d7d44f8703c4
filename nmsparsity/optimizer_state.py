"""Dense weights that travel in ``optimizer.state_dict()``, so that any loop can save and resume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from nmsparsity.master import MasterWeight

_STEP = "sparsity_step"
_PREFIX = "sparsity_"
_TAKEN = "sparsity_taken"
_WAITING = "sparsity_before_first_step"


class OptimizerState:
    """Puts the sparsifier's tensors beside the optimizer's own, per parameter, and takes them back.

    Per-parameter entries (``sparsity_dense_weight``, ``sparsity_mask``) are sharded, moved and
    saved by whatever saves the optimizer, distributed checkpoints included. The optimizer itself
    never sees them: it would take any entry for a sign that it has begun.
    """

    def __init__(self, masters: Sequence[MasterWeight]) -> None:
        self._masters = {id(master.parameter): master for master in masters}
        self._found: dict[int, dict[str, Any]] = {}
        self._steps: int | None = None

    def add(self, optimizer: Optimizer, state: dict[str, Any], steps: int) -> dict[str, Any]:
        """The optimizer's state_dict with our entries in it."""
        packed, groups = dict(state["state"]), [dict(group) for group in state["param_groups"]]
        waiting: dict[Any, dict[str, Any]] = dict(state.get(_WAITING, {}))
        keeps_nothing = steps > 0 and not state["state"]
        for key, parameter in _keyed(optimizer, groups):
            if id(parameter) in self._masters:
                extra = self._masters[id(parameter)].state()
                named = {f"{_PREFIX}{name}": value for name, value in extra.items()}
                if key in packed or keeps_nothing:
                    packed[key] = {**packed.get(key, {}), **named}
                else:
                    # A plain optimizer would take our entry alone for a sign that it has begun.
                    waiting[key] = named
        groups[0][_STEP] = steps
        added = {**state, "state": packed, "param_groups": groups}
        return {**added, _WAITING: waiting} if waiting else added

    def take(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """A state_dict without our entries, which are kept for `restore`."""
        rest, groups = dict(state["state"]), [dict(group) for group in state["param_groups"]]
        # Another sparsifier on the same optimizer may have stood here before us.
        found, steps = state.get(_TAKEN, ({}, None))
        for key, parameter in _keyed(optimizer, groups):
            ours = _ours(rest.get(key, {})) or _ours(state.get(_WAITING, {}).get(key, {}))
            if ours:
                found = {**found, id(parameter): ours}
            if key in rest:
                rest[key] = {n: v for n, v in rest[key].items() if not _is_ours(n)}
                if not rest[key]:
                    del rest[key]
        for group in groups:
            steps = group.pop(_STEP, steps)
        self._found, self._steps = found, steps
        return {**state, "state": rest, "param_groups": groups, _TAKEN: (found, steps)}

    def take_loaded(self, optimizer: Optimizer) -> bool:
        """Our entries out of an optimizer whose state was loaded before we were there."""
        self._found, self._steps = {}, None
        for group in optimizer.param_groups:
            self._steps = group.get(_STEP, self._steps)
            for parameter in group["params"]:
                entry = optimizer.state.get(parameter, {})
                ours = _ours(entry) if id(parameter) in self._masters else {}
                if ours:
                    self._found[id(parameter)] = ours
                    for name in filter(_is_ours, list(entry)):
                        del entry[name]
        return bool(self._found)

    @torch.no_grad()
    def restore(self) -> int | None:
        """Give the masters what `take` found; the number of steps done, where it was there."""
        found = {key: state for key, state in self._found.items() if key in self._masters}
        for key, state in found.items():
            self._masters[key].check_state(state)
        for key, state in found.items():
            self._masters[key].load(state)
        self._found = {}
        return None if self._steps is None else int(self._steps)


def _is_ours(name: object) -> bool:
    return str(name).startswith(_PREFIX)


def _ours(entry: dict[Any, Any]) -> dict[str, Any]:
    return {n.removeprefix(_PREFIX): value for n, value in entry.items() if _is_ours(n)}


def _keyed(optimizer: Optimizer, groups: list[dict[str, Any]]) -> Iterator[tuple[Any, Any]]:
    """Pairs of a key of the state_dict and the parameter that it stands for."""
    for group, mine in zip(groups, optimizer.param_groups, strict=False):
        yield from zip(group["params"], mine["params"], strict=False)
