"""Dense weights that travel in ``optimizer.state_dict()``, so that any loop can save and resume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from nmsparsity.master import MasterWeight

_STEP = "sparsity_step"
_PREFIX = "sparsity_"


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
        for key, parameter in _keyed(optimizer, groups):
            if id(parameter) in self._masters:
                extra = self._masters[id(parameter)].state()
                named = {f"{_PREFIX}{name}": value for name, value in extra.items()}
                packed[key] = {**packed.get(key, {}), **named}
        groups[0][_STEP] = steps
        return {**state, "state": packed, "param_groups": groups}

    def take(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """A state_dict without our entries, which are kept for `restore`."""
        rest, groups = dict(state["state"]), [dict(group) for group in state["param_groups"]]
        self._found, self._steps = {}, None
        for key, parameter in _keyed(optimizer, groups):
            entry = rest.get(key, {})
            ours = {name for name in entry if str(name).startswith(_PREFIX)}
            if ours:
                self._found[id(parameter)] = {n.removeprefix(_PREFIX): entry[n] for n in ours}
                rest[key] = {name: value for name, value in entry.items() if name not in ours}
                if not rest[key]:
                    del rest[key]
        for group in groups:
            self._steps = group.pop(_STEP, self._steps)
        return {**state, "state": rest, "param_groups": groups}

    @torch.no_grad()
    def restore(self) -> int | None:
        """Give the masters what `take` found; the number of steps done, where it was there."""
        for key, state in self._found.items():
            if key in self._masters:
                self._masters[key].load(state)
        self._found = {}
        return None if self._steps is None else int(self._steps)


def _keyed(optimizer: Optimizer, groups: list[dict[str, Any]]) -> Iterator[tuple[Any, Any]]:
    """Pairs of a key of the state_dict and the parameter that it stands for."""
    for group, mine in zip(groups, optimizer.param_groups, strict=False):
        yield from zip(group["params"], mine["params"], strict=False)
