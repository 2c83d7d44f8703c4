"""SparsityCallback trains what a plain loop trains, and says what it does."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import nmsparsity as nm
from nmsparsity import promises
from nmsparsity.integrations.lightning import SparsityCallback
from tests.images import lightning_warnings

pytestmark = lightning_warnings


def data(batches: int = 6) -> DataLoader:
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(batches * 8, 16, generator=draws)
    y = torch.randint(0, 4, (batches * 8,), generator=draws)
    return DataLoader(TensorDataset(x, y), batch_size=8)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 4))


class Module(LightningModule):
    def __init__(self, optimizers: int = 1) -> None:
        super().__init__()
        self.net, self.optimizers_wanted = net(), optimizers
        self.automatic_optimization = optimizers == 1

    def training_step(self, batch, index):
        x, y = batch
        return functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        made = [
            torch.optim.AdamW(self.net.parameters(), 1e-2) for _ in range(self.optimizers_wanted)
        ]
        return made if len(made) > 1 else made[0]


def trainer(folder: Path, *callbacks, epochs: int = 2, **options) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False, **options},
    )


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_equal_to_a_plain_loop(accumulate: int, clip: float | None, tmp_path: Path) -> None:
    plain = net()
    optimizer = torch.optim.AdamW(plain.parameters(), 1e-2)
    nm.sparsify(plain, optimizer, "1:4", decay=1e-2)
    for _ in range(2):
        for index, (x, y) in enumerate(data()):
            (functional.cross_entropy(plain(x), y) / accumulate).backward()
            if (index + 1) % accumulate == 0:
                if clip is not None:
                    nn.utils.clip_grad_norm_(plain.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()

    module = Module()
    callback = SparsityCallback("1:4", method_options={"decay": 1e-2}, print_report=False)
    options = {"accumulate_grad_batches": accumulate, "gradient_clip_val": clip}
    trainer(tmp_path, callback, **options).fit(module, data())
    for name, value in plain.state_dict().items():
        assert torch.equal(module.net.state_dict()[name], value), name
    assert nm.verify(module, {"net.0": "1:4", "net.2": "1:4"}).ok


def test_resumes_bit_by_bit_from_the_middle(tmp_path: Path) -> None:
    whole, parts = Module(), Module()
    callback = SparsityCallback("2:4", print_report=False)
    trainer(tmp_path, callback, epochs=4).fit(whole, data())
    first = trainer(tmp_path, SparsityCallback("2:4", print_report=False), epochs=2)
    first.fit(parts, data())
    first.save_checkpoint(tmp_path / "half.ckpt")

    resumed, again = Module(), SparsityCallback("2:4", print_report=False)
    with torch.no_grad():
        resumed.net[0].weight.fill_(9.0)
    trainer(tmp_path, again, epochs=4).fit(resumed, data(), ckpt_path=tmp_path / "half.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert again.history == callback.history
    assert [entry["epoch"] for entry in again.history] == [1, 2, 3, 4]


def test_sad_after_a_stop_between_an_epoch_and_its_look(tmp_path: Path) -> None:
    whole = SparsityCallback("2:4", "ste", print_report=False)

    class Save(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == 6:
                trainer.save_checkpoint(tmp_path / "edge.ckpt")

    trainer(tmp_path, whole, Save(), epochs=3).fit(Module(), data())
    again = SparsityCallback("2:4", "ste", print_report=False)
    trainer(tmp_path, again, epochs=3).fit(Module(), data(), ckpt_path=tmp_path / "edge.ckpt")
    assert again.history == whole.history[1:], "the look was missed, and is not the next one's"


def test_the_checkpoint_names_the_patterns(tmp_path: Path) -> None:
    callback = SparsityCallback({"*.0": "2:4", "*.2": "1:8"}, print_report=False)
    run = trainer(tmp_path, callback, epochs=1)
    run.fit(Module(), data())
    run.save_checkpoint(tmp_path / "last.ckpt")
    states = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    assert states["SparsityCallback"]["patterns"] == {
        "net.0.weight": ["2:4", "input"],
        "net.2.weight": ["1:8", "input"],
    }


def test_it_says_what_is_sparse_and_logs_sad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = SparsityCallback("2:4", "ste", exclude=["net.2"], telemetry_every=2)
    run = trainer(tmp_path, callback, epochs=4)
    run.fit(Module(), data())
    said = capsys.readouterr().out
    assert "net.0.weight" in said
    assert "excluded by rule" in said
    assert [entry["epoch"] for entry in callback.history] == [2, 4]
    assert callback.history[0]["sad"] > 0
    assert callback.history[0]["density"] == 0.5
    assert run.callback_metrics["sparsity/sad"] == callback.history[1]["sad"]


def test_dense_changes_nothing(tmp_path: Path) -> None:
    with_it, without = Module(), Module()
    trainer(tmp_path, SparsityCallback(method="dense", print_report=False)).fit(with_it, data())
    trainer(tmp_path).fit(without, data())
    for name, value in without.state_dict().items():
        assert torch.equal(with_it.state_dict()[name], value), name


def test_weights_that_are_not_sparse_at_the_end_are_an_error(tmp_path: Path) -> None:
    class Vandal(SparsityCallback):
        def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
            nn.init.ones_(module.net[0].weight)

    with pytest.raises(RuntimeError, match=r"after training, .* net\.0\.weight|do NOT hold"):
        trainer(tmp_path, Vandal("2:4", print_report=False)).fit(Module(), data())


def test_one_optimizer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"want one optimizer, Module has 2; call nmsparsity"):
        trainer(tmp_path, SparsityCallback("2:4")).fit(Module(optimizers=2), data())


def test_fitting_again_goes_on_with_the_dense_weights(tmp_path: Path) -> None:
    module, callback = Module(), SparsityCallback("2:4", print_report=False)
    run = trainer(tmp_path, callback, epochs=1)
    run.fit(module, data())
    first = callback.sparsifier
    dense = first.state_dict()["weights"]["net.0.weight"]["dense_weight"].clone()
    assert int((dense != 0).sum()) == dense.numel()

    run.fit_loop.max_epochs = 2
    seen = []
    callback.on_train_start = lambda *_: seen.append(
        copy.deepcopy(callback.sparsifier.state_dict())
    )
    run.fit(module, data())
    assert callback.sparsifier is not first
    assert torch.equal(seen[0]["weights"]["net.0.weight"]["dense_weight"], dense)
    assert seen[0]["steps"] == 6
    assert callback.sparsifier.steps == 12
    assert [entry["epoch"] for entry in callback.history] == [1, 2]
    assert nm.verify(module).ok


def test_what_is_written_between_two_fits_is_kept(tmp_path: Path) -> None:
    module, callback = Module(), SparsityCallback("2:4", print_report=False)
    run = trainer(tmp_path, callback, epochs=1)
    run.fit(module, data())
    nn.init.constant_(module.net[0].weight, 0.5)
    run.fit_loop.max_epochs = 2
    seen = []
    callback.on_train_start = lambda *_: seen.append(module.net[0].weight.detach().clone())
    run.fit(module, data())
    assert torch.equal(seen[0], torch.tensor([0.5, 0.5, 0.0, 0.0]).repeat(32, 4))


def test_after_a_fit_the_module_is_free_and_still_promised(tmp_path: Path) -> None:
    module, callback = Module(), SparsityCallback("2:4", axis="kernel", print_report=False)
    first = trainer(tmp_path, callback, epochs=1)
    first.fit(module, data())
    assert promises.declared()[id(module.net[0].weight)] == nm.Pattern(2, 4, "kernel")
    first.save_checkpoint(tmp_path / "after.ckpt")
    state = torch.load(tmp_path / "after.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    assert any(key == "sparsity_dense_weight" for entry in state.values() for key in entry)
    other = SparsityCallback("1:4", print_report=False)
    trainer(tmp_path, other, epochs=1).fit(module, data())
    assert nm.verify(module, "1:4").ok
    nm.prune(module, "1:8")


def test_after_a_fit_that_failed_too(tmp_path: Path) -> None:
    class Failing(Module):
        def training_step(self, batch, index):
            if index == 2:
                raise ZeroDivisionError("a mistake")
            return super().training_step(batch, index)

    module, callback = Failing(), SparsityCallback("2:4", print_report=False)
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, callback).fit(module, data())
    nm.prune(module, "1:4")


def test_another_module_starts_anew(tmp_path: Path) -> None:
    callback = SparsityCallback("2:4", print_report=False)
    one, two = Module(), Module()
    trainer(tmp_path, callback, epochs=1).fit(one, data())
    trainer(tmp_path, callback, epochs=1).fit(two, data())
    assert callback.sparsifier.steps == 6
    for name, value in one.state_dict().items():
        assert torch.equal(two.state_dict()[name], value), name
    assert nm.verify(one).ok


@pytest.mark.parametrize(
    "averaging", [lambda: StochasticWeightAveraging(1e-2), lambda: EMAWeightAveraging()]
)
def test_averaging_by_lightning_is_refused_at_the_start(averaging, tmp_path: Path) -> None:
    callback, module = SparsityCallback("2:4", print_report=False), Module()
    with pytest.raises(ValueError, match=r"WeightAveraging: the average .* is not N:M; remove it"):
        trainer(tmp_path, averaging(), callback).fit(module, data())
    dense = SparsityCallback(method="dense", print_report=False)
    trainer(tmp_path, averaging(), dense).fit(Module(), data())


# Methods with a schedule.


@pytest.mark.parametrize("method", ["step", "gradual"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_schedule_is_told_the_length_of_the_training(
    method: str, accumulate: int, tmp_path: Path
) -> None:
    module, callback = Module(), SparsityCallback("2:4", method)
    trainer(tmp_path, callback, epochs=3, accumulate_grad_batches=accumulate).fit(module, data())
    assert callback.sparsifier is not None
    assert callback.sparsifier.steps == 18 // accumulate
    assert callback.sparsifier.state_dict()["course"]["total_steps"] == 18 // accumulate
    assert callback.sparsifier.report().ok
    # Dense in the first epoch, N:M from the middle of the second one on.
    assert [round(entry["density"], 3) for entry in callback.history] == [1.0, 0.5, 0.5]


@pytest.mark.parametrize("method", ["step", "gradual", "s_ste"])
def test_methods_with_a_state_resume_bit_by_bit(method: str, tmp_path: Path) -> None:
    whole, callback = Module(), SparsityCallback("2:4", method)
    trainer(tmp_path, callback, epochs=4).fit(whole, data())
    for stop in (1, 3):
        part = Module()
        # The plan is that of four epochs; the training is interrupted before.
        first = trainer(tmp_path, SparsityCallback("2:4", method), Stop(stop), epochs=4)
        with pytest.raises(RuntimeError, match="stopped"):
            first.fit(part, data())
        again = Module()
        trainer(tmp_path, SparsityCallback("2:4", method), epochs=4).fit(
            again, data(), ckpt_path=tmp_path / "stopped.ckpt", weights_only=False
        )
        for mine, theirs in zip(again.net.parameters(), whole.net.parameters(), strict=True):
            assert torch.equal(mine, theirs)


class Stop(Callback):
    """Saves after so many epochs, and ends the training."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.current_epoch == self.epochs:
            raise RuntimeError("stopped")

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.current_epoch == self.epochs - 1:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "stopped.ckpt")


@pytest.mark.parametrize("method", ["step", "gradual"])
def test_a_training_that_ends_before_it_is_sparse_is_an_error(method: str, tmp_path: Path) -> None:
    callback = SparsityCallback("2:4", method, method_options={"total_steps": 100})
    with pytest.raises(RuntimeError, match=rf"after training, .*method '{method}' is .* 12 steps"):
        trainer(tmp_path, callback).fit(Module(), data())
