"""Dense weights that travel in ``optimizer.state_dict()``, so that any loop can save and resume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from nmsparsity.master import MasterWeight
from nmsparsity.methods.base import Method
from nmsparsity.pattern import Axis, Pattern
from nmsparsity.shards import like_parameter, local_shard

_AXES = get_args(Axis)
_PREFIX = "sparsity_"
_OWN = "own_"
_TAKEN = "sparsity_taken"
_WAITING = "sparsity_before_first_step"
_COUNT = "optimizer_step"


class OptimizerState:
    """Puts the sparsifier's tensors beside the optimizer's own, per parameter, and takes them back.

    Per-parameter entries (``sparsity_dense_weight``, ``sparsity_mask``, and the pattern as the
    ints ``sparsity_n``, ``sparsity_m``, ``sparsity_axis``) are sharded, moved and saved by whatever
    saves the optimizer, distributed checkpoints included. The optimizer itself never sees them: it
    would take any entry for a sign that it has begun. Before its first step they therefore stand
    in its parameter groups, which a plain optimizer keeps as they are.

    Attributes:
        whole: what was found of no single weight: the step count, the course of the method.
    """

    def __init__(self, masters: Sequence[MasterWeight]) -> None:
        self._masters = {id(master.parameter): master for master in masters}
        self._found: dict[int, dict[str, Any]] = {}
        self.whole: dict[str, Any] = {}

    def add(
        self, optimizer: Optimizer, state: dict[str, Any], whole: dict[str, Any]
    ) -> dict[str, Any]:
        """The optimizer's state_dict with our entries in it; those of no weight in its group 0."""
        packed, groups = dict(state["state"]), [dict(group) for group in state["param_groups"]]
        keeps_nothing = whole["step"] > 0 and not state["state"]
        for group, mine in zip(groups, optimizer.param_groups, strict=False):
            waiting = dict(group.get(_WAITING, {}))
            for place, (key, parameter) in enumerate(_pairs(group, mine)):
                if id(parameter) not in self._masters:
                    continue
                extra = state_of(self._masters[id(parameter)])
                if "step" in packed.get(key, {}):
                    extra[_COUNT] = float(packed[key]["step"])
                named = {f"{_PREFIX}{name}": value for name, value in extra.items()}
                if key in packed or keeps_nothing:
                    packed[key] = {**packed.get(key, {}), **named}
                else:
                    # A plain optimizer would take our entry alone for a sign that it has begun.
                    waiting[place] = named
            if waiting:
                group[_WAITING] = waiting
        groups[0].update({f"{_PREFIX}{name}": value for name, value in whole.items()})
        return {**state, "state": packed, "param_groups": groups}

    def take(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """A state_dict without our entries, which are kept for `restore`.

        Raises:
            ValueError: where they do not fit, naming the layer, before anything is loaded.
        """
        rest, groups = dict(state["state"]), [dict(group) for group in state["param_groups"]]
        # Another sparsifier on the same optimizer may have stood here before us.
        found, whole = state.get(_TAKEN, ({}, {}))
        for group, mine in zip(groups, optimizer.param_groups, strict=False):
            waiting = group.pop(_WAITING, {})
            whole = {**whole, **_ours(group)}
            for name in filter(_is_ours, list(group)):
                del group[name]
            for place, (key, parameter) in enumerate(_pairs(group, mine)):
                ours = _ours(rest.get(key, {})) or _ours(waiting.get(place, {}))
                if ours:
                    found = {**found, id(parameter): ours}
                if key in rest:
                    rest[key] = {n: v for n, v in rest[key].items() if not _is_ours(n)}
                    if not rest[key]:
                        del rest[key]
        self._check(found)
        self._found, self.whole = found, whole
        return {**state, "state": rest, "param_groups": groups, _TAKEN: (found, whole)}

    def take_loaded(self, optimizer: Optimizer) -> bool:
        """Our entries out of an optimizer whose state was loaded before we were there.

        What the optimizer has trained since then, without us, is no longer what they are of: the
        weights in the model count. Most optimizers number their steps; of the others the model
        must hold the weights of the state already.

        Raises:
            ValueError: where they do not fit, naming the layer.
        """
        self._found, self.whole, trained_since = {}, {}, False
        for group in optimizer.param_groups:
            self.whole.update(_ours({n: v for n, v in group.items() if n != _WAITING}))
            for place, parameter in enumerate(group["params"]):
                entry = optimizer.state.get(parameter, {})
                # An optimizer that has begun has left behind what waited for its first step.
                ours = _ours(entry or group.get(_WAITING, {}).get(place, {}))
                if ours and id(parameter) in self._masters:
                    self._found[id(parameter)] = ours
                    trained_since |= _was_trained(self._masters[id(parameter)], entry, ours)
        if trained_since:
            self._found, self.whole = {}, {}
        self._check(self._found)
        self._forget(optimizer)
        return bool(self._found)

    def _forget(self, optimizer: Optimizer) -> None:
        """Remove our entries from the optimizer's own state."""
        for group in optimizer.param_groups:
            for place, parameter in enumerate(group["params"]):
                if id(parameter) in self._masters:
                    group.get(_WAITING, {}).pop(place, None)
                    entry = optimizer.state.get(parameter, {})
                    for name in filter(_is_ours, list(entry)):
                        del entry[name]
            if not group.get(_WAITING, True):
                del group[_WAITING]

    def _check(self, found: dict[int, dict[str, Any]]) -> None:
        for key, state in found.items():
            if key in self._masters:
                check_state(self._masters[key], state)

    @torch.no_grad()
    def restore(self) -> None:
        """Give the masters what `take` found; what was of no weight is ``whole``."""
        for key, state in self._found.items():
            if key in self._masters:
                load_state(self._masters[key], state)
        self._found = {}


def _holds(master: MasterWeight, dense: Tensor) -> bool:
    """Whether the parameter holds what a sparsifier makes of this dense weight."""
    if type(master.method).effective is not Method.effective:
        return True
    sparse, dense = master.local, dense.to(master.local.device, master.local.dtype)
    return bool(((sparse == 0) | (sparse == dense)).all())


def state_of(master: MasterWeight) -> dict[str, Any]:
    """What a checkpoint needs of a weight: tensors, sharded like the parameter, and its pattern.

    The pattern is three ints: distributed checkpoints take no text.
    """
    pattern = {"n": master.pattern.n, "m": master.pattern.m}
    pattern["axis"] = _AXES.index(master.pattern.axis)
    state = {"dense_weight": like_parameter(master.dense, master.parameter), **pattern}
    state.update({f"{_OWN}{name}": value for name, value in master.stage.state.items()})
    if master.mask is not None:
        state["mask"] = like_parameter(master.mask, master.parameter)
    return state


@torch.no_grad()
def load_state(master: MasterWeight, state: dict[str, Any]) -> None:
    """Restore a state that was checked; the parameter holds the sparse weight of it."""
    # After a step that raised the parameter may stand on the memory of the dense weight.
    master.reclaim()
    master.dense.copy_(local_shard(state["dense_weight"]))
    master.mask = None
    own = {name: value for name, value in state.items() if name.startswith(_OWN)}
    master.stage.state = {name.removeprefix(_OWN): float(own[name]) for name in own}
    master.is_new = not own
    if master.method.keeps_mask and "mask" in state:
        master.check_finite(master.dense)
        # A copy: the state belongs to whoever gave it.
        mask = local_shard(state["mask"])
        master.show(mask.to(master.dense.device, torch.bool, copy=True))
    else:
        master.project()


def check_state(master: MasterWeight, state: dict[str, Any]) -> None:
    """Refuse a state of another shape or pattern.

    Raises:
        ValueError: naming the layer.
    """
    shape = tuple(master.dense.shape)
    layer = f"layer {master.name!r} {list(shape)}"
    for entry in ("dense_weight", "mask"):
        given = tuple(local_shard(state[entry]).shape) if entry in state else shape
        if given != shape:
            raise ValueError(
                f"{layer}: its {entry.replace('_', ' ')} in the state is {list(given)}; the state "
                "is of another model"
            )
    pattern = _pattern_of(state)
    if pattern not in (None, master.pattern) or not _fits(master, state):
        raise ValueError(
            f"{layer}: the state is of {_words(pattern)}, this sparsifier keeps "
            f"{_words(master.pattern)}; give sparsify the pattern of the state, or load the "
            "weights of the model alone to train on under another"
        )


def _fits(master: MasterWeight, state: dict[str, Any]) -> bool:
    """Whether a mask that is going to be used follows the pattern."""
    if not master.method.keeps_mask or "mask" not in state:
        return True
    return master.pattern.holds(local_shard(state["mask"]), master.layout)


def _was_trained(master: MasterWeight, entry: dict[str, Any], ours: dict[str, Any]) -> bool:
    """Whether an optimizer with our entries has updated this weight since they were loaded.

    Raises:
        ValueError: where that cannot be known, naming the layer.
    """
    if _COUNT in ours and "step" in entry:
        return bool(float(entry["step"]) != ours[_COUNT])
    check_state(master, ours)
    dense = ours.get("dense_weight")
    if dense is None or dense.shape != master.parameter.shape or _holds(master, local_shard(dense)):
        return False
    raise ValueError(
        f"layer {master.name!r} {list(master.dense.shape)}: the optimizer carries a dense weight "
        "from an earlier sparse training, of which the model does not hold the sparse weight; "
        "load the model's weights before sparsify, or, where the model was trained on without "
        "sparsify, give a new optimizer"
    )


def _pattern_of(state: dict[str, Any]) -> Pattern | None:
    """The pattern that a state was made under; None where it does not say."""
    if "n" not in state:
        return None
    return Pattern(int(state["n"]), int(state["m"]), _AXES[int(state["axis"])])


def _words(pattern: Pattern | None) -> str:
    return "another pattern" if pattern is None else f"{pattern} along the {pattern.axis} axis"


def _is_ours(name: object) -> bool:
    return str(name).startswith(_PREFIX)


def _ours(entry: dict[Any, Any]) -> dict[str, Any]:
    return {n.removeprefix(_PREFIX): value for n, value in entry.items() if _is_ours(n)}


def _pairs(group: dict[str, Any], mine: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Pairs of a key of the state_dict and the parameter that it stands for."""
    return zip(group["params"], mine["params"], strict=False)
