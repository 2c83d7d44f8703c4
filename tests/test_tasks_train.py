"""Training by configuration: metrics over all processes, run folders, interruptions."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn import functional

from nmsparsity import cli
from nmsparsity.tasks.classification import SGD, ClassificationTask
from nmsparsity.tasks.history import History
from nmsparsity.tasks.run_folder import differences
from nmsparsity.tasks.train import STOPPED, Run, prepare
from tests.images import lightning_warnings, write_idx_set

pytestmark = lightning_warnings
ROOT = Path(__file__).parents[1]


def words(folder: Path, *more: str, epochs: int = 2, run: str = "run") -> list[str]:
    """The command line of a small training on generated images."""
    config = {
        "task": {
            "model": "small_resnet8",
            "model_options": {"width": 8},
            "optimizer": {"lr": 0.05, "warmup_epochs": 0.5},
        },
        "sparsity": {"pattern": "2:4", "method_options": {"decay": 0.01}, "print_report": False},
        "data": {"source": "set", "root": str(folder), "batch_size": 8, "padding": 1},
        "trainer": {
            "max_epochs": epochs,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
        },
    }
    if not (folder / "set").exists():
        write_idx_set(folder / "set")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(config))
    return ["--config", str(folder / "recipe.yaml"), "--run_dir", str(folder / run), *more]


class StopAt(Callback):
    """SIGTERM to this very process after a number of steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def weights(run: Run) -> dict[str, torch.Tensor]:
    """All that training leaves: the model and the optimizer, dense weights included."""
    state = run.trainer.optimizers[0].state_dict()["state"]
    inner = {f"{i}.{k}": v for i, s in state.items() for k, v in s.items()}
    return {**run.task.state_dict(), **inner}


def assert_same_bits(one: Run, other: Run) -> None:
    wanted = weights(one)
    got = weights(other)
    assert wanted.keys() == got.keys()
    for name, value in wanted.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(got[name])), name


def test_a_run_leaves_its_configuration_history_and_result(tmp_path: Path) -> None:
    run = prepare(words(tmp_path))
    result = run.fit()
    folder = tmp_path / "run"
    assert result is not None
    assert {file.name for file in folder.iterdir()} == {
        *("config.yaml", "history.csv", "last.ckpt", "best.ckpt", "result.json")
    }
    assert json.loads((folder / "result.json").read_text()) == result
    assert result["images"] == 21
    assert result["epochs"] == 2
    assert result["best_top1"] >= result["top1"]
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["task"]["optimizer"]["momentum"] == 0.9, "defaults are resolved"
    rows = (folder / "history.csv").read_text().splitlines()
    assert len(rows) == 3
    assert {"epoch", "val/top1", "sparsity/sad", "seconds"} <= set(rows[0].split(","))


def test_validations_are_in_the_rows_of_their_epochs_only(tmp_path: Path) -> None:
    run = prepare(words(tmp_path, "--trainer.check_val_every_n_epoch", "2", epochs=3))
    assert run.fit() is not None
    rows = next(its for its in run.trainer.callbacks if isinstance(its, History)).rows
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert ["val/top1" in row for row in rows] == [False, True, False]
    assert all("sparsity/sad" in row for row in rows)


def test_a_finished_run_is_not_done_again(tmp_path: Path) -> None:
    result = prepare(words(tmp_path)).fit()
    before = (tmp_path / "run" / "last.ckpt").stat().st_mtime_ns
    assert prepare(words(tmp_path)).fit() == result
    assert (tmp_path / "run" / "last.ckpt").stat().st_mtime_ns == before


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    prepare(words(tmp_path)).fit()
    with pytest.raises(ValueError, match=r"sparsity\.pattern: 2:4 there, 1:4 here.*--run_dir"):
        prepare(words(tmp_path, "--sparsity.pattern", "1:4"))
    longer = prepare(words(tmp_path, "--ckpt_path", "last", epochs=3))
    result = longer.fit()
    assert result is not None
    assert result["epochs"] == 3
    assert len(longer.history.rows) == 3


@pytest.mark.parametrize("step", [5, 17])
def test_sigterm_and_the_same_command_again_is_bit_identical(step: int, tmp_path: Path) -> None:
    whole = prepare(words(tmp_path, run="whole"))
    whole.fit()
    stopped = prepare(words(tmp_path), [StopAt(step)])
    assert stopped.fit() is None
    assert stopped.trainer.global_step == step
    assert not (tmp_path / "run" / "result.json").exists()
    saved = shutil.copy(tmp_path / "run" / "last.ckpt", tmp_path / "stopped.ckpt")
    resumed = prepare(words(tmp_path))
    assert resumed.resume is not None
    resumed.fit()
    assert resumed.trainer.global_step == whole.trainer.global_step == 24
    assert_same_bits(whole, resumed)
    assert resumed.task.counted == whole.task.counted
    for name in ("val/top1", "sparsity/sad"):
        assert [row[name] for row in resumed.history.rows] == [
            row[name] for row in whole.history.rows
        ], name
    before = torch.load(saved, weights_only=True)["callbacks"]["History"]
    assert before["seconds"] > 0


def test_kill_9_and_the_same_command_again_is_bit_identical(tmp_path: Path) -> None:
    whole = prepare(words(tmp_path, run="whole", epochs=4))
    whole.fit()
    command = [sys.executable, "-m", "nmsparsity", "train", *words(tmp_path, epochs=4)]
    slow = {**os.environ, "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(command, cwd=ROOT, env=slow, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (tmp_path / "run" / "result.json").exists()
    resumed = prepare(words(tmp_path, epochs=4))
    assert resumed.resume is not None
    resumed.fit()
    assert_same_bits(whole, resumed)


def test_the_clock_of_an_epoch_goes_on_where_it_was_interrupted(monkeypatch) -> None:
    from nmsparsity.tasks import history

    now = [0.0]
    monkeypatch.setattr(history.time, "perf_counter", lambda: now[0])
    trainer = Trainer(logger=False, barebones=True)
    first, module = History(), LightningModule()
    first.on_train_epoch_start(trainer, module)
    now[0] = 3.0
    state = first.state_dict()
    assert state["seconds"] == 3.0
    now[0] = 10.0
    again = History()
    again.load_state_dict(state)
    again.on_train_batch_start(trainer, module, None, 5)  # Lightning starts no epoch anew.
    now[0] = 12.0
    again.on_train_batch_start(trainer, module, None, 6)
    now[0] = 14.0
    again.on_train_epoch_end(trainer, module)
    assert again.rows[0]["seconds"] == 7.0


def test_the_exit_status_of_a_stopped_training(tmp_path: Path, monkeypatch, capsys) -> None:
    from nmsparsity.tasks import train

    ready = prepare
    monkeypatch.setattr(train, "prepare", lambda words: ready(words, [StopAt(3)]))
    assert cli.main(["train", *words(tmp_path)]) == STOPPED
    assert "the same command goes on" in capsys.readouterr().out


def test_trying_a_recipe_leaves_nothing(tmp_path: Path) -> None:
    run = prepare(words(tmp_path, "--trainer.fast_dev_run", "2"))
    assert run.fit() is not None
    assert run.trainer.global_step == 2
    assert not (tmp_path / "run").exists()


def test_fixed_starts_from_a_trained_network(tmp_path: Path) -> None:
    nothing = ["--sparsity.method_options", "{}"]
    prepare(words(tmp_path, "--sparsity.method", "dense", *nothing, run="dense")).fit()
    dense = torch.load(tmp_path / "dense" / "last.ckpt", weights_only=True)["state_dict"]
    options = ["--sparsity.method", "fixed", *nothing]
    options += ["--task.init_from", str(tmp_path / "dense" / "last.ckpt")]
    starts = {}

    class Look(Callback):
        def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
            starts.update({k: v.clone() for k, v in module.state_dict().items()})

    run = prepare(words(tmp_path, *options), [Look()])
    run.fit()
    name = "model.stages.1.0.conv1.weight"
    kept = starts[name] != 0
    assert kept.float().mean() == 0.5
    assert torch.equal(starts[name], dense[name] * kept)
    assert torch.equal(starts["model.fc.weight"], dense["model.fc.weight"])
    assert torch.equal(run.task.state_dict()[name] != 0, kept), "the mask stays"


def test_two_processes_count_every_image_once(tmp_path: Path) -> None:
    one = prepare(words(tmp_path, run="one", epochs=1))
    one.fit()
    more = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    command = [sys.executable, "-m", "nmsparsity", "train", *words(tmp_path, *more, epochs=1)]
    # Lightning starts the second process by this same command.
    subprocess.run(command, cwd=ROOT, check=True, timeout=300, stdout=subprocess.DEVNULL)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["images"] == 21
    share = result["top1"] / 100 * 21
    assert share == pytest.approx(round(share))
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert state["global_step"] == one.trainer.global_step == 12


def test_the_optimizer_follows_its_fields() -> None:
    task = ClassificationTask("small_resnet8", {"width": 4}, classes=2)
    everything = sum(p.numel() for p in task.parameters())
    plain = SGD(lr=0.3, momentum=0.8, weight_decay=0.1).build(task.model)
    assert {(g["lr"], g["momentum"], g["weight_decay"]) for g in plain.param_groups} == {
        (0.3, 0.8, 0.1)
    }
    assert sum(p.numel() for g in plain.param_groups for p in g["params"]) == everything
    spared = SGD(weight_decay=0.1, decay_norm_and_bias=False).build(task.model)
    for group in spared.param_groups:
        assert {p.dim() > 1 for p in group["params"]} == {group["weight_decay"] == 0.1}


def test_label_smoothing_and_schedule(tmp_path: Path) -> None:
    run = prepare(words(tmp_path, "--task.label_smoothing", "0.2"))
    rates = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: LightningModule, out, *_) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

        def on_train_batch_start(self, trainer, module, batch, index) -> None:
            if not rates:
                scores = module(batch[0])
                want = functional.cross_entropy(scores, batch[1], label_smoothing=0.2)
                assert torch.equal(module.training_step(batch, index), want)

    run.trainer.callbacks.append(Look())
    run.fit()
    assert len(rates) == 24
    assert max(rates) == 0.05 == rates[5], "half an epoch of 12 steps"
    assert rates[-1] == pytest.approx(0.0, abs=1e-6)


def test_seconds_of_history_leave_out_validation(tmp_path: Path) -> None:
    class Slow(Callback):
        def on_validation_batch_end(self, *_: object) -> None:
            time.sleep(0.5)

    began = time.perf_counter()
    run = prepare(words(tmp_path, epochs=1), [Slow()])
    run.fit()
    assert run.history.rows[-1]["seconds"] < time.perf_counter() - began - 1.4


def test_history_has_no_file_when_not_asked(tmp_path: Path) -> None:
    history = History()
    history.rows.append({"epoch": 1})
    history._write()
    assert list(tmp_path.iterdir()) == []


def test_differences_are_named() -> None:
    old = {"a": {"b": 1, "c": [1]}, "d": 2}
    assert differences(old, {"a": {"b": 1, "c": [2]}, "e": 3}) == [
        "a.c: [1] there, [2] here",
        "d: 2 there, None here",
        "e: None there, 3 here",
    ]


def test_a_training_without_validation_says_so_each_time(tmp_path: Path, capsys) -> None:
    line = ["train", *words(tmp_path, "--trainer.limit_val_batches", "0", epochs=1)]
    for _ in range(2):  # The second time its result is read from the folder.
        assert cli.main(line) == 0
        assert "1 epochs, not validated (" in capsys.readouterr().out
