"""SparsityCallback under transformers.Trainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import nmsparsity as nm

pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")
from accelerate import Accelerator
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
)

from nmsparsity.integrations.hugging_face import SparsityCallback


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


def data(count: int = 24) -> list[dict[str, object]]:
    draws = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 32, (count, 8), generator=draws)
    return [{"input_ids": row, "labels": int(row[0]) % 2} for row in tokens]


def trainer(folder: Path, model: nn.Module, *callbacks: object, **options: object) -> Trainer:
    chosen = {
        **{"num_train_epochs": 2, "per_device_train_batch_size": 4, "save_strategy": "no"},
        **{"learning_rate": 1e-2, "report_to": "none", "use_cpu": True, "disable_tqdm": True},
        **{"dataloader_pin_memory": False},
        **options,
    }
    args = TrainingArguments(folder, **chosen)
    return Trainer(
        model, args, train_dataset=data(), eval_dataset=data(8), callbacks=list(callbacks)
    )


def quiet(pattern: object = "2:4", **options: object) -> SparsityCallback:
    return SparsityCallback(pattern, print_report=False, **options)


def same(one: nn.Module, other: nn.Module) -> None:
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


@pytest.mark.parametrize("accumulate", [1, 2])
def test_equal_to_sparsifying_the_optimizer_by_hand(accumulate: int, tmp_path: Path) -> None:
    by_hand = bert()
    run = trainer(tmp_path, by_hand, gradient_accumulation_steps=accumulate)
    nm.sparsify(by_hand, run.create_optimizer(), "1:4", decay=1e-2)
    run.train()

    model = bert()
    callback = quiet("1:4", method_options={"decay": 1e-2})
    trainer(tmp_path, model, callback, gradient_accumulation_steps=accumulate).train()
    same(by_hand, model)
    assert callback.sparsifier is not None
    assert callback.sparsifier.steps == 12 // accumulate
    assert nm.verify(model).ok


def test_resumes_bit_by_bit_from_the_middle(tmp_path: Path) -> None:
    whole, first, resumed = bert(), bert(), bert()
    options = {"num_train_epochs": 4, "lr_scheduler_type": "constant", "save_strategy": "epoch"}
    callback, again = quiet("1:4"), quiet("1:4")
    run = trainer(tmp_path / "whole", whole, callback, **options)
    run.train()
    trainer(tmp_path / "parts", first, quiet("1:4"), **{**options, "num_train_epochs": 2}).train()
    with torch.no_grad():
        resumed.classifier.weight.fill_(9.0)
    second = trainer(tmp_path / "parts", resumed, again, **options)
    second.train(resume_from_checkpoint=True)
    same(whole, resumed)
    mine, its = callback.sparsifier.state_dict(), again.sparsifier.state_dict()
    for name, entry in mine["weights"].items():
        assert torch.equal(entry["dense_weight"], its["weights"][name]["dense_weight"]), name
    assert mine["steps"] == its["steps"] == 24
    sads = [
        [e["sparsity/sad"] for e in r.state.log_history if "sparsity/sad" in e]
        for r in (run, second)
    ]
    assert sads[0] == sads[1]
    assert len(sads[0]) == 4


def test_what_the_trainer_saves_is_sparse(tmp_path: Path) -> None:
    model = bert()
    run = trainer(tmp_path, model, quiet("1:4"))
    run.train()
    run.save_model(tmp_path / "saved")
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "saved")
    same(model, loaded)
    assert nm.verify(loaded, {"bert.encoder.*": "1:4"}).ok


def test_training_again_goes_on_with_the_dense_weights(tmp_path: Path) -> None:
    model, callback = bert(), quiet("1:4")
    run = trainer(tmp_path, model, callback)
    run.train()
    before = {n: e["dense_weight"].clone() for n, e in _entries(callback).items()}
    steps = callback.sparsifier.steps
    trainer(tmp_path, model, callback, max_steps=1, learning_rate=0.0, weight_decay=0.0).train()
    for name, entry in _entries(callback).items():
        assert torch.allclose(entry["dense_weight"], before[name], atol=1e-6), name
        assert int((entry["dense_weight"] != 0).sum()) > entry["dense_weight"].numel() // 2
    assert callback.sparsifier.steps == steps + 1
    run.train()
    assert nm.verify(model).ok
    assert nm.prune(model, "1:8").ok


def _entries(callback: SparsityCallback) -> dict[str, dict[str, torch.Tensor]]:
    return callback.sparsifier.state_dict()["weights"]


def test_the_best_model_that_is_loaded_at_the_end_is_sparse(tmp_path: Path) -> None:
    model = bert()
    run = trainer(
        tmp_path,
        model,
        quiet("1:4"),
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
    )
    run.train()
    assert nm.verify(model).ok


def test_gpt2_in_bf16_with_clipping(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    )
    run = trainer(tmp_path, model, quiet("2:4"), bf16=True, max_grad_norm=0.1)
    run.train_dataset = [{"input_ids": e["input_ids"], "labels": e["input_ids"]} for e in data()]
    run.train()
    report = nm.verify(model)
    assert report.ok
    assert "transformer.h.0.attn.c_attn.weight" in [row.name for row in report.sparse]


def test_it_says_what_is_sparse_and_why_the_rest_is_not(tmp_path: Path, capsys) -> None:
    trainer(tmp_path, bert(), SparsityCallback("2:4"), max_steps=1).train()
    said = capsys.readouterr().out
    assert "bert.encoder.layer.0.attention.self.query.weight" in said
    assert "an embedding table is looked up" in said


def test_a_rule_that_matches_nothing_ends_the_training_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'encodr' matches no layer"):
        trainer(tmp_path, bert(), quiet(include="encodr")).train()


# Accelerate's own loop: no callback, sparsify before or after prepare.


@pytest.mark.parametrize("order", ["before", "after"])
def test_accelerate(order: str) -> None:
    accelerator = Accelerator(cpu=True)
    model = bert()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    if order == "before":
        nm.sparsify(model, optimizer, "1:4")
    model, optimizer = accelerator.prepare(model, optimizer)
    if order == "after":
        with pytest.raises(ValueError, match=r"often optimizer\.optimizer"):
            nm.sparsify(model, optimizer, "1:4")
        nm.sparsify(model, optimizer.optimizer, "1:4")
    for entry in data(4):
        tokens = entry["input_ids"][None]
        loss = model(input_ids=tokens, labels=torch.tensor([entry["labels"]])).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    assert nm.verify(model).ok


@pytest.mark.parametrize("method", ["step", "gradual"])
def test_a_schedule_is_told_the_length_of_the_training(method: str, tmp_path: Path) -> None:
    callback = quiet(method=method)
    trainer(tmp_path, bert(), callback).train()
    assert callback.sparsifier is not None
    assert callback.sparsifier.state_dict()["course"]["total_steps"] == 12
    late = quiet(method=method, method_options={"total_steps": 100})
    with pytest.raises(RuntimeError, match=rf"after training, .*method '{method}' is .* 12 steps"):
        trainer(tmp_path, bert(), late).train()
