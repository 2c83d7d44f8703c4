"""SparsityCallback: N:M training under Lightning."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from nmsparsity.flip_guide import FlipRate, judge
from nmsparsity.pattern import Axis
from nmsparsity.promises import free
from nmsparsity.report import verify
from nmsparsity.sparsifier import Sparsifier, sparsify
from nmsparsity.targets import Remainder, select
from nmsparsity.telemetry import Telemetry


class SparsityCallback(Callback):
    """Keeps the weights of a LightningModule N:M while the Trainer trains them.

    Calls `nmsparsity.sparsify` on the module's one optimizer when the fit starts, logs SAD and
    density, and at the end checks that every group really is N:M. Checkpoints need nothing more:
    the dense weights travel in the optimizer's state. Fitting the same module again goes on with
    its dense weights; after a fit the module is free for another callback or `sparsify`.

    Args:
        pattern: ``"N:M"``, N kept of every M; or ``{rule: "N:M"}`` by layer name, such as
            ``{"*layer4*": "1:8"}``. Names begin with the attribute that holds the network:
            ``model.layer4.0.conv1``.
        method: ``"sr_ste"``, ``"ste"``, ``"step"``, ``"s_ste"``, ``"gradual"``, ``"fixed"`` (from a
            trained network), ``"dense"`` (no sparsity, the baseline), or a name that was
            registered. Those with a schedule are told the length of the training.
        axis: ``"input"`` (what hardware contracts over) or ``"kernel"`` (the paper's first layout).
        include: only these layers, by name or glob; default all but the exceptions reported.
        exclude: never these layers.
        remainder: for layers whose input is no multiple of M: ``"dense"``, ``"pad"``, ``"error"``.
        method_options: the method's own, such as ``{decay: 2e-4, form: gradient}``.
        telemetry_every: epochs between two looks at the masks; 0 never looks.
        flip_steps: ``[first, last]`` optimizer steps, in the warm-up say, over which the mean flip
            rate of the masks is measured, printed and kept as ``flip_rate``; under ``"dense"`` that
            of the masks the weights would have.
        dense_flip_rate: that of a dense training with the same recipe and ``flip_steps``: a warning
            follows where lambda_w is far off (arXiv 2404.01847).
        print_report: print at the start what is sparse, and what is not and why.

    Attributes:
        sparsifier: the `Sparsifier`, from the start of the fit.
        flip_rate: mean flip rate in ``flip_steps``, None before their end.
        history: one ``{"epoch", "step", "sad", "sad_normalized", "density"}`` per look.
    """

    def __init__(
        self,
        pattern: str | dict[str, str] = "2:4",
        method: str = "sr_ste",
        axis: Axis = "input",
        include: list[str] | None = None,
        exclude: list[str] | None = None,
        remainder: Remainder = "dense",
        method_options: dict[str, Any] | None = None,
        telemetry_every: int = 1,
        flip_steps: tuple[int, int] | None = None,
        dense_flip_rate: float | None = None,
        print_report: bool = True,
    ) -> None:
        self.pattern, self.method, self.axis = pattern, method, axis
        self.include, self.exclude, self.remainder = include, exclude, remainder
        self.method_options = dict(method_options or {})
        self.telemetry_every, self.print_report = telemetry_every, print_report
        if dense_flip_rate is not None and flip_steps is None:
            raise ValueError(
                f"dense_flip_rate {dense_flip_rate} without flip_steps: give the steps it was "
                "measured in, as in flip_steps=[50, 100]"
            )
        self.flip_steps, self.dense_flip_rate = flip_steps, dense_flip_rate
        self.flip_rate: float | None = None
        self._flips: FlipRate | None = None
        self.sparsifier: Sparsifier | None = None
        self.history: list[dict[str, float]] = []
        self._module: LightningModule | None = None
        self._looked: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Sparsify: the optimizer exists, its saved state is not restored yet."""
        if len(trainer.optimizers) != 1:
            raise ValueError(
                f"SparsityCallback: want one optimizer, {type(module).__name__} has "
                f"{len(trainer.optimizers)}; call nmsparsity.sparsify yourself in on_fit_start"
            )
        self._refuse_averaging(trainer)
        before = self._leave(module)
        self.sparsifier = sparsify(
            module,
            trainer.optimizers[0],
            self.pattern,
            method=self.method,
            axis=self.axis,
            include=self.include,
            exclude=self.exclude,
            remainder=self.remainder,
            **self.method_options,
        )
        self._module = module
        if before is not None and before["weights"].keys() == self.sparsifier.weights().keys():
            self.sparsifier.load_state_dict(before)
        if self.print_report and trainer.is_global_zero:
            print(self.sparsifier.report())

    def _refuse_averaging(self, trainer: Trainer) -> None:
        """Lightning's averages of sparse weights are not N:M, and replace the model at the end."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            kinds = {kind.__name__ for kind in type(callback).__mro__}
            if self.method != "dense" and kinds & _AVERAGING:
                raise ValueError(
                    f"SparsityCallback and {type(callback).__name__}: the average of sparse "
                    "weights, which that callback puts into the model at the end, is not N:M; "
                    "remove it, average the dense weights in a callback of your own inside 'with "
                    "sparsifier.dense_weights():', and call sparsifier.project_ on the average"
                )

    def _leave(self, module: LightningModule) -> dict[str, Any] | None:
        """Let go of the optimizer of the fit before; the dense weights, if of this module."""
        if self.sparsifier is None:
            return None
        state = self.sparsifier.state_dict() if self._module is module else None
        if state is not None:
            self.sparsifier.remove()
        return state

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Tell the method how long the training is: known here, and not at the fit's start."""
        assert self.sparsifier is not None
        if self._looked is not None and not self._missed(trainer):
            self.sparsifier.resume_telemetry(self._looked)
        self._looked = None
        steps = optimizer_steps(trainer)
        if steps is not None:
            self.sparsifier.plan(steps)
        if self.flip_steps is not None:
            chosen = select(
                module,
                self.pattern,
                include=self.include,
                exclude=self.exclude,
                remainder=self.remainder,
                axis=self.axis,
            )
            self._flips = FlipRate(chosen.targets, *self.flip_steps)
            self._flips.look(self.sparsifier.steps)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count flips, in ``flip_steps``."""
        if self._flips is None or self.sparsifier is None:
            return
        if self._flips.look(self.sparsifier.steps) and self._flips.rate is not None:
            local = torch.tensor(self._flips.rate, device=module.device)
            self.flip_rate = float(trainer.strategy.reduce(local, reduce_op="mean"))
            self._judge(trainer)

    def _judge(self, trainer: Trainer) -> None:
        """Say the flip rate, and whether it tells that lambda_w is far off."""
        assert self.flip_rate is not None
        assert self.flip_steps is not None
        if not trainer.is_global_zero:
            return
        first, last = self.flip_steps
        print(f"mean flip rate of steps {first} to {last}: {self.flip_rate:.3g}")
        said = None
        if self.dense_flip_rate is not None:
            said = judge(self.flip_rate, self.dense_flip_rate)
        if said is not None:
            warnings.warn(f"SparsityCallback, method {self.method!r}: {said}", stacklevel=2)

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """After the fit: others may sparsify, prune or load the module."""
        if stage == "fit":
            self._free()

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        """The same after a fit that failed."""
        self._free()

    def _free(self) -> None:
        """Keep the weights to ourselves no longer; what they follow stays promised.

        The optimizer's state still carries the dense weights: checkpoints are also saved after
        the fit.
        """
        if self.sparsifier is None:
            return
        weights: Any = self.sparsifier.weights()
        free(weights.values())

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Look at the masks: SAD since the last look."""
        if not self._due(trainer.current_epoch + 1):
            return
        assert self.sparsifier is not None
        seen = self.sparsifier.telemetry()
        self.history.append(_entry(seen, trainer.current_epoch + 1))
        for name in ("sad", "sad_normalized", "density"):
            module.log(f"sparsity/{name}", float(getattr(seen, name)), sync_dist=True)

    def _missed(self, trainer: Trainer) -> bool:
        """Whether the checkpoint is of an epoch's last batch, before the look that was due then.

        Lightning does not end that epoch once more; its changes are not those of the next one.
        """
        total, epochs = optimizer_steps(trainer), trainer.max_epochs
        if total is None or trainer.max_steps > 0 or not epochs:
            return False
        done, inside = divmod(trainer.global_step, total // epochs)
        seen = self.history[-1]["epoch"] if self.history else 0
        return not inside and self._due(done) and seen < done

    def _due(self, epoch: int) -> bool:
        return self.telemetry_every > 0 and epoch % self.telemetry_every == 0

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Check the finished weights.

        Raises:
            RuntimeError: if a weight that should be N:M is not.
        """
        assert self.sparsifier is not None
        if not self.sparsifier.weights():
            return
        report = verify(module)
        if not report.ok:
            raise RuntimeError(f"after training, {report.summary}")

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the callback itself: patterns, history, the last look."""
        rows = self.sparsifier.report().sparse if self.sparsifier else []
        return {
            "patterns": {row.name: [row.pattern, row.axis] for row in rows},
            "history": self.history,
            "flip_rate": self.flip_rate,
            "telemetry": self.sparsifier.state_dict()["telemetry"] if self.sparsifier else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.history = list(state["history"])
        self.flip_rate = state.get("flip_rate")
        self._looked = state.get("telemetry")


def optimizer_steps(trainer: Trainer) -> int | None:
    """The optimizer steps of a whole fit, once its data is open; None where it has no end.

    ``trainer.estimated_stepping_batches`` would open the data itself, and Lightning then does not
    restore how far an interrupted epoch had come.
    """
    if trainer.max_steps > 0:
        return trainer.max_steps
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    if epochs is None or epochs < 0 or batches == float("inf"):
        return None
    return max(1, math.ceil(batches / trainer.accumulate_grad_batches) * epochs)


_AVERAGING = {"WeightAveraging", "StochasticWeightAveraging"}


def _entry(seen: Telemetry, epoch: int) -> dict[str, float]:
    return {
        "epoch": epoch,
        "step": seen.step,
        "sad": seen.sad,
        "sad_normalized": seen.sad_normalized,
        "density": seen.density,
    }
