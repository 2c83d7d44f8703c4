"""The sparsifier: keeps a model's weights N:M while an optimizer trains them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nmsparsity.masters import Masters
from nmsparsity.methods import Dense, Method, build
from nmsparsity.optimizer_state import check_state, load_state, state_of
from nmsparsity.optimizers import check_optimizer, groups_by_parameter
from nmsparsity.pattern import Axis
from nmsparsity.promises import claim, claimed, declare, release, withdraw
from nmsparsity.report import Report, describe
from nmsparsity.shards import put_back_shards
from nmsparsity.sites import sites, unwrap
from nmsparsity.step_hooks import StepHooks
from nmsparsity.targets import (
    Patterns,
    Remainder,
    Rules,
    Selection,
    Target,
    select,
)
from nmsparsity.telemetry import Telemetry


def sparsify(
    model: nn.Module,
    optimizer: Optimizer,
    pattern: Patterns = "2:4",
    *,
    method: str | Method = "sr_ste",
    include: Rules = None,
    exclude: Rules = None,
    remainder: Remainder = "dense",
    axis: Axis | None = None,
    **options: Any,
) -> Sparsifier:
    """Keep the model's weights N:M from here on, in place; train on with any loop.

    The model's parameters hold the sparse weights. The dense ones, which the optimizer updates,
    are kept by the sparsifier, as fp32 master weights are in mixed precision. They travel in
    ``optimizer.state_dict()``: a loop that saves model and optimizer resumes exactly.

    ``optimizer.step()`` changes gradients in place: SR-STE leaves its term in ``.grad``. Zero them
    before the next backward pass, as every loop does, and read them before the step.

    Args:
        model: any module; wrap it (DDP, ``fully_shard``) before this call, compile it when you
            like.
        optimizer: the one that trains it.
        pattern: ``"N:M"``, N kept of every M, or ``{rule: "N:M"}`` by layer name.
        method: ``"sr_ste"``, ``"ste"``, ``"step"``, ``"s_ste"``, ``"gradual"``, ``"fixed"``,
            ``"dense"``, a name you registered, or a `Method`.
        include: only these layers; default: all but the exceptions that `Sparsifier.report` lists.
        exclude: never these layers.
        remainder: for layers whose input is no multiple of M: ``"dense"``, ``"pad"``, ``"error"``.
        axis: ``"input"`` (what hardware contracts over) or ``"kernel"``; default that of the
            pattern.
        **options: the method's own, such as ``decay=2e-4``.

    Raises:
        ValueError: when no layer can follow the pattern, with the reasons; when a rule matches
            nothing; when a weight is NaN or infinite.

    Source: SR-STE, arXiv 2102.04010, equation 9.

    >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
    >>> sparsifier = sparsify(model, optimizer, "2:4")
    >>> int((model[0].weight != 0).sum())
    32
    """
    check_optimizer(optimizer)
    chosen = build(method, options)
    put_back_shards(model)
    selection = select(
        model, pattern, include=include, exclude=exclude, remainder=remainder, axis=axis
    )
    trained = groups_by_parameter(optimizer)
    selection = selection.without(lambda target: _why_not_trained(target, chosen, trained))
    if not isinstance(chosen, Dense):
        selection.require(pattern)
    return Sparsifier(model, optimizer, chosen, selection)


class Sparsifier:
    """Which weights of which model follow which pattern; sits on one optimizer.

    Made by `sparsify`.

    Attributes:
        method: the training method.
        skipped: the weights that stay dense, each with the reason.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        method: Method,
        selection: Selection,
    ) -> None:
        self.method, self.skipped = method, selection.skipped
        self._model, self._optimizer = model, optimizer
        self._masters = Masters(selection.targets, method)
        self._masters.lend_only(p for group in optimizer.param_groups for p in group["params"])
        kept = claimed()
        for master in self._masters:
            if id(master.parameter) in kept:
                raise ValueError(
                    f"layer {master.name!r} is kept sparse by another sparsifier already; call its "
                    "remove() first"
                )
            master.check_finite(master.dense)
        self._hooks = StepHooks(model, optimizer, self._masters, method)
        self._hooks.begin()
        declare({master.site: master.pattern for master in self._masters})
        for master in self._masters:
            claim(master)

    @property
    def steps(self) -> int:
        """Optimizer steps done."""
        return self._hooks.steps

    # What a user asks of it.

    def weights(self) -> dict[str, Tensor]:
        """The sparse weights by name: the model's own parameters."""
        return {master.name: master.parameter for master in self._masters}

    @contextmanager
    def dense_weights(self) -> Iterator[dict[str, Tensor]]:
        """Inside the block the model holds its dense weights: for weight averaging (EMA, SWA).

        What is written to them inside the block is kept.
        """
        with self._hooks.exposed():
            yield self.weights()

    @torch.no_grad()
    def project_(self, model: nn.Module) -> nn.Module:
        """Make a copy of the model (an average, say) N:M, in place, by the names of its layers."""
        if unwrap(model) is unwrap(self._model):
            self._hooks.catch_up()
            self._masters.project()
            return model
        found = {site.name: site for site in sites(model)}
        for master in self._masters:
            site = found.get(master.name)
            if site is None or site.shape != master.site.shape:
                raise ValueError(f"the model has no layer {master.name!r} {master.site.shape}")
            master.project_copy(site.parameter)
        declare({found[master.name]: master.pattern for master in self._masters})
        return model

    def telemetry(self) -> Telemetry:
        """What changed since the last call: SAD, flip rate, density, layer by layer."""
        return self._hooks.look()

    def plan(self, total_steps: int) -> None:
        """Tell a method with a schedule how many optimizer steps the whole training takes.

        An option ``total_steps`` of the method wins over it; other methods do not care.
        """
        self._hooks.course.plan(total_steps)

    def report(self) -> Report:
        """The per-layer table: pattern, density, whether it holds, and what is dense and why."""
        self._hooks.catch_up()
        targets = [Target(master.site, master.pattern) for master in self._masters]
        return describe(targets, self.skipped, self._model)

    def state_dict(self) -> dict[str, Any]:
        """Dense weights, masks, steps, the method's course; the optimizer's state has them too.

        What that one has not: ``telemetry``, the masks at the last look, a bit per weight. Where
        both are loaded, load the optimizer's state first: it lets telemetry begin anew.
        """
        self._hooks.catch_up()
        weights = {master.name: state_of(master) for master in self._masters}
        return {
            "steps": self.steps,
            "weights": weights,
            "course": self._hooks.course.state(),
            "telemetry": self._hooks.watch.state(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`, in place.

        Raises:
            ValueError: unless the state has exactly the layers of this sparsifier.
        """
        mine, given = {master.name for master in self._masters}, set(state["weights"])
        if mine != given:
            raise ValueError(
                f"the state is of another sparsifier: missing {sorted(mine - given)}, "
                f"unexpected {sorted(given - mine)}"
            )
        for master in self._masters:
            check_state(master, state["weights"][master.name])
        self._hooks.restart(
            {**state.get("course", {}), "step": state["steps"]},
            lambda: self._load_weights(state["weights"]),
        )
        if "telemetry" in state:
            self.resume_telemetry(state["telemetry"])

    def resume_telemetry(self, state: dict[str, Any]) -> None:
        """Let `telemetry` count from a look before an interruption: ``state_dict()["telemetry"]``.

        Not where weights are sharded, or of other sizes: the next look is then from here. Loading
        the optimizer's state after this does the same.
        """
        if all(master.dense.shape == master.parameter.shape for master in self._masters):
            self._hooks.watch.resume(state)

    def _load_weights(self, state: dict[str, Any]) -> None:
        for master in self._masters:
            load_state(master, state[master.name])

    def remove(self) -> None:
        """Let go of the optimizer; the model keeps its sparse weights and trains freely."""
        try:
            self._hooks.remove()
        finally:
            for master in self._masters:
                release(master)
            withdraw(master.site for master in self._masters)

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        """Refused: the copy of an optimizer has no hooks, so nothing would call the copy."""
        self._refuse_copy()

    def __reduce__(self) -> NoReturn:
        self._refuse_copy()

    def _refuse_copy(self) -> NoReturn:
        raise TypeError(
            f"a Sparsifier of {len(self._masters)} layers cannot be copied or pickled: it hangs on "
            f"its optimizer by hooks, which copies of {type(self._optimizer).__name__} lose; copy "
            "the model, make an optimizer for the copy, call sparsify on the two and load "
            "copy.deepcopy(optimizer.state_dict()) into the new one"
        )


def _why_not_trained(target: Target, method: Method, trained: dict[int, int]) -> str | None:
    """Why this sparsifier leaves a weight alone that could follow its pattern."""
    if isinstance(method, Dense):
        return "method 'dense'"
    if not target.site.parameter.requires_grad:
        return "it is frozen (requires_grad is False)"
    if id(target.site.parameter) not in trained:
        return "this optimizer does not train it"
    return None
