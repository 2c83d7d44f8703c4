"""SparsityCallback: N:M training under the Trainer of Hugging Face transformers."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nmsparsity.pattern import Axis
from nmsparsity.promises import free
from nmsparsity.report import verify
from nmsparsity.sparsifier import Sparsifier, sparsify
from nmsparsity.targets import Patterns, Remainder, Rules


class SparsityCallback(TrainerCallback):  # type: ignore[misc]
    """Keeps the weights of a model N:M while ``transformers.Trainer`` trains it.

    Calls `nmsparsity.sparsify` on the Trainer's own optimizer when the training begins, writes SAD
    and density into the Trainer's log history, and at the end checks that every group really is
    N:M. Checkpoints need nothing more: the dense weights travel in the optimizer's state, so
    ``trainer.train(resume_from_checkpoint=True)`` goes on bit by bit, and what ``save_model``
    writes are the sparse weights. Training the same model again goes on with its dense weights.

        trainer = Trainer(model, args, train_dataset=data, callbacks=[SparsityCallback("2:4")])
        trainer.train()

    Args:
        pattern: ``"N:M"``, N kept of every M; or ``{rule: "N:M"}`` by layer name.
        method: ``"sr_ste"``, ``"ste"``, ``"fixed"`` (from a trained network), ``"dense"``, or a
            name that was registered.
        axis: ``"input"`` (what hardware contracts over) or ``"kernel"``; default that of the
            pattern.
        include: only these layers; default all but the exceptions reported.
        exclude: never these layers.
        remainder: for layers whose input is no multiple of M: ``"dense"``, ``"pad"``, ``"error"``.
        method_options: the method's own, such as ``{"decay": 2e-4}``.
        telemetry_every: epochs between two looks at the masks; 0 never looks.
        print_report: print at the start what is sparse, and what is not and why.

    Attributes:
        sparsifier: the `Sparsifier`, from the start of the training.
    """

    def __init__(
        self,
        pattern: Patterns = "2:4",
        method: str = "sr_ste",
        axis: Axis | None = None,
        include: Rules = None,
        exclude: Rules = None,
        remainder: Remainder = "dense",
        method_options: dict[str, Any] | None = None,
        telemetry_every: int = 1,
        print_report: bool = True,
    ) -> None:
        self.pattern, self.method = pattern, method
        self.options = {
            **{"axis": axis, "include": include, "exclude": exclude, "remainder": remainder},
            **(method_options or {}),
        }
        self.telemetry_every, self.print_report = telemetry_every, print_report
        self.sparsifier: Sparsifier | None = None
        self._model: nn.Module | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **given: Any,
    ) -> None:
        """Sparsify: the optimizer exists, and a checkpoint to resume from has been loaded."""
        model: nn.Module = given["model"]
        before = self._leave(model)
        optimizer = _inner(given["optimizer"])
        self.sparsifier = sparsify(
            model, optimizer, self.pattern, method=self.method, **self.options
        )
        self.sparsifier.plan(state.max_steps)
        self._model = model
        is_resumed = self.sparsifier.steps > 0
        if before and not is_resumed and before["weights"].keys() == self.weights.keys():
            self.sparsifier.load_state_dict(before)
        if self.print_report and state.is_world_process_zero:
            print(self.sparsifier.report())

    @property
    def weights(self) -> dict[str, Any]:
        """The sparse weights by name."""
        return {} if self.sparsifier is None else self.sparsifier.weights()

    def _leave(self, model: nn.Module) -> dict[str, Any] | None:
        """Let go of the training before; the dense weights, if of this model."""
        if self.sparsifier is None:
            return None
        state = self.sparsifier.state_dict() if self._model is model else None
        self.sparsifier.remove()
        return state

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **given: Any,
    ) -> None:
        """Look at the masks: SAD since the last look, into ``state.log_history``."""
        epoch = round(state.epoch or 0)
        if not self.weights or self.telemetry_every <= 0 or epoch % self.telemetry_every:
            return
        assert self.sparsifier is not None
        seen = self.sparsifier.telemetry()
        names = ("sad", "sad_normalized", "density")
        entry = {f"sparsity/{name}": float(getattr(seen, name)) for name in names}
        state.log_history.append({**entry, "epoch": float(epoch), "step": state.global_step})

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **given: Any,
    ) -> None:
        """Check the finished weights; others may sparsify, prune or load the model from here on.

        Raises:
            RuntimeError: if a weight that should be N:M is not.
        """
        if not self.weights:
            return
        report = verify(given["model"])
        free(self.weights.values())
        if not report.ok:
            raise RuntimeError(f"after training, {report.summary}")


def _inner(optimizer: Any) -> Optimizer:
    """The optimizer inside the wrappers of accelerate, whose own hooks never run."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    inner: Optimizer = optimizer
    return inner
