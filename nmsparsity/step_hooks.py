"""What happens to the master weights around a step of their optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from nmsparsity.master import MasterWeight
from nmsparsity.masters import Masters
from nmsparsity.methods.base import Method, Step
from nmsparsity.optimizer_state import OptimizerState
from nmsparsity.optimizers import groups_by_parameter
from nmsparsity.shards import put_back_shards
from nmsparsity.telemetry import Telemetry, Watch

_LOOK_EVERY = 16


class StepHooks:
    """Hangs master weights on an optimizer: before each step, after it, and in its state_dict.

    Attributes:
        steps: optimizer steps done.
        course: how the training runs under its method.
        watch: what telemetry is taken from.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, masters: Masters, method: Method
    ) -> None:
        self.steps, self.course = 0, method.course(optimizer)
        self._model = model
        self._optimizer, self._masters = optimizer, masters
        self._group_of = groups_by_parameter(optimizer)
        self._exposed = 0
        self._is_torchs = type(optimizer).__module__.startswith("torch.optim")
        self._state = OptimizerState(list(masters))
        # The checkpoint may have been loaded before sparsify.
        self._was_loaded = self._state.take_loaded(optimizer)

    def begin(self) -> None:
        """Begin: the parameters hold sparse weights from here on."""
        self._masters.enter(self.course, 0)
        self._masters.project()
        self.watch = Watch(list(self._masters))
        if self._was_loaded:
            self._load(self._optimizer)
        optimizer = self._optimizer
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_state_dict_post_hook(self._save),
            optimizer.register_load_state_dict_pre_hook(self._state.take),
            optimizer.register_load_state_dict_post_hook(self._load),
        ]

    def remove(self) -> None:
        """Let go of the optimizer."""
        try:
            if not self._exposed:
                # The last step may not have come to its end: an exception in the optimizer.
                self._take_back()
        finally:
            for handle in self._handles:
                handle.remove()

    @contextmanager
    def exposed(self) -> Iterator[None]:
        """Inside the block the parameters hold the dense weights; what is written to them stays."""
        self.catch_up()
        with torch.no_grad():
            self._masters.expose()
        self._exposed += 1
        try:
            yield
        finally:
            self._exposed -= 1
            if not self._exposed:
                self._take_back()

    def look(self) -> Telemetry:
        """What changed since the last look."""
        self.catch_up()
        return self.watch.look(self.steps)

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs beside the weights: the step count and the course."""
        return {"step": self.steps, **self.course.state()}

    @torch.no_grad()
    def restart(self, state: dict[str, Any], load_weights: Callable[[], None]) -> None:
        """Go on from a state: the course first, then the weights in the light of it."""
        self.steps = int(state.get("step", self.steps))
        self.course.load(state)
        self._masters.enter(self.course, self.steps)
        load_weights()
        self.watch.restart(self.steps)

    @torch.no_grad()
    def catch_up(self, look_inside: bool = True) -> None:
        """Notice what happened to the model since the last step, and keep it."""
        if any(master.is_gathered() for master in self._masters):
            put_back_shards(self._model)
        for master in self._masters:
            if master.is_replaced():
                raise RuntimeError(
                    f"layer {master.name!r} holds another Parameter than when it was sparsified "
                    "(load_state_dict(assign=True), or fully_shard after sparsify?): the optimizer "
                    "does not train it either; make the optimizer and call sparsify after that"
                )
        if self._exposed:
            self._masters.keep_written()
            return
        # The last step may not have come to its end: an exception in the optimizer.
        self._take_back()
        self._masters.follow()
        self._adopt(look_inside)

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._exposed:
            raise RuntimeError("optimizer.step() inside dense_weights(): leave the block first")
        self.course.check()
        self.catch_up(look_inside=self.steps % _LOOK_EVERY == 0)
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._release()
            return None
        with torch.no_grad():
            for master in self._masters:
                if master.adopted:
                    master.project()
        if not self._is_torchs:
            # torch's optimizers begin with the closure; others (SAM) may move the weights first.
            with torch.no_grad():
                self._masters.expose()
        if "closure" in kwargs:
            return args, {**kwargs, "closure": self._wrap(closure)}
        return (args[0], self._wrap(closure), *args[2:]), kwargs

    def _wrap(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The user's closure, run on the sparse weights, however often the optimizer calls it."""

        def on_sparse_weights() -> Any:
            self._take_back()
            loss = closure()
            self._adopt(look_inside=False)
            self._release()
            return loss

        return on_sparse_weights

    def _after_step(self, *_: Any) -> None:
        self.course.after_update(self.steps)
        self._masters.enter(self.course, self.steps + 1)
        self._take_back()
        self.steps += 1
        self.watch.after_step()

    @torch.no_grad()
    def _adopt(self, look_inside: bool) -> None:
        """What was written into the sparse weights is the dense weight from here on."""
        for master in self._masters.overwritten(look_inside):
            self._refuse_broadcast(master)
            master.adopt()

    def _refuse_broadcast(self, master: MasterWeight) -> None:
        """Sparse weights that another rank broadcast before the first step are no adoption."""
        if self.steps or not _is_distributed() or not master.pattern.holds(master.local):
            return
        raise RuntimeError(
            f"layer {master.name!r} was overwritten with the sparse weights of another process "
            "before the first step, so its dense weights would differ between processes; call "
            "sparsify after DistributedDataParallel(model)"
        )

    @torch.no_grad()
    def _release(self) -> None:
        """Add the method's term to the gradients, put the dense weights into the model."""
        self.watch.before_step()
        self._masters.release(self._step, lend=self._is_torchs)
        self.course.before_update()

    @torch.no_grad()
    def _take_back(self) -> None:
        """Take the dense weights out of the model again, and project them."""
        self._masters.take_back(self._step)

    def _step(self, master: MasterWeight) -> Step:
        group = self._optimizer.param_groups[self._group_of[id(master.parameter)]]
        scale = getattr(self._optimizer, "grad_scale", None)
        found_inf = getattr(self._optimizer, "found_inf", None)
        return Step(
            count=self.steps,
            lr=group.get("lr", 0.0),
            grad_scale=1.0 if scale is None else scale,
            maximize=group.get("maximize", False),
            found_inf=0.0 if found_inf is None else found_inf,
        )

    # What travels in the optimizer's state_dict.

    def _save(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        self.catch_up()
        return self._state.add(optimizer, state, self.state())

    def _load(self, _: Optimizer) -> None:
        self.restart(self._state.whole, self._state.restore)


def _is_distributed() -> bool:
    distributed = torch.distributed
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )
