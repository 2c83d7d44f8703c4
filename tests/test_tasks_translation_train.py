"""Training a translator by configuration: loss, resume, processes, averaging, run folders."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from torch.nn import functional
from transformers import BartConfig, BartForConditionalGeneration

import nmsparsity as nm
from nmsparsity import cli
from nmsparsity.tasks.checkpoint import Checkpoint
from nmsparsity.tasks.schedule import planned_epochs
from nmsparsity.tasks.train import Run, prepare
from nmsparsity.tasks.translation.adam import AdamW
from nmsparsity.tasks.translation.dropout import QuickDropout
from nmsparsity.tasks.translation.models import Transformer, describe, described, new
from nmsparsity.tasks.translation.pairs import Pairs
from nmsparsity.tasks.translation.scores import Scores
from nmsparsity.tasks.translation.task import TranslationTask
from nmsparsity.tasks.translation.vocabulary import Vocabulary
from tests.images import lightning_warnings
from tests.sentences import sentences, words
from tests.test_tasks_train import assert_same_bits

pytestmark = [*lightning_warnings, pytest.mark.filterwarnings("ignore:.*smaller than the logging")]
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    english, german = sentences(100)
    return Vocabulary.train([*english, *german], 300)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of three epochs, of which two are averaged."""
    folder = tmp_path_factory.mktemp("translation")
    run = prepare(words(folder, "--task.average", "2", epochs=3))
    assert run.fit() is not None
    return run


def test_a_run_leaves_what_it_takes_to_translate(trained: Run) -> None:
    folder = trained.folder.path
    assert {file.name for file in folder.iterdir()} == {
        *("config.yaml", "tokenizer.json", "model.json", "history.csv", "result.json"),
        *("last.ckpt", "best.ckpt", "averaged.ckpt", "translations-validation.tsv"),
    }
    result = json.loads((folder / "result.json").read_text())
    assert result["sentences"] == 13
    assert result["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|")
    assert result["chrf_signature"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|")
    assert result["perplexity"] < 40, "it has learnt something"
    assert {"bleu", "chrf", "loss", "best_bleu", "averaged_bleu", "density"} <= set(result)
    with (folder / "translations-validation.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["reference"] for row in rows] == sentences(13, 1)[1]
    history = (folder / "history.csv").read_text().splitlines()
    assert {"val/bleu", "val/chrf", "val/loss", "val/perplexity", "train/tokens_per_second"} <= set(
        history[0].split(",")
    )
    assert len(history) == 4


def test_attention_and_feed_forward_are_sparse_embeddings_and_output_dense(trained: Run) -> None:
    checkpoint = Checkpoint.read(trained.folder.last)
    linears = {
        name for name in checkpoint.tensors if name.endswith("_proj.weight") or ".fc" in name
    }
    linears = {name for name in linears if name.endswith(".weight")}
    assert len(linears) == 6 + 2 * 10
    assert checkpoint.patterns == dict.fromkeys(linears, nm.Pattern(2, 4))
    for name, tensor in checkpoint.tensors.items():
        if name in linears:
            assert nm.Pattern(2, 4).holds(tensor), name
    said = {row.name: row.reason for row in trained.sparsity.sparsifier.report().rows}
    assert "tied" in said["model.lm_head.weight"]


def test_the_average_is_of_dense_weights_and_sparse(trained: Run) -> None:
    average = Checkpoint.read(trained.folder.path / "averaged.ckpt")
    assert Checkpoint.read(trained.folder.path).path == average.path
    last = torch.load(trained.folder.last, weights_only=True)
    kept = next(state for key, state in last["callbacks"].items() if "AverageDense" in key)
    assert kept["count"] == 2
    name = "model.decoder.layers.0.encoder_attn.q_proj.weight"
    dense = kept["sums"][name] / 2
    assert int((dense == 0).sum()) == 0, "dense weights were averaged"
    mask = nm.Pattern(2, 4).mask(dense.abs())
    torch.testing.assert_close(average.tensors[name], dense * mask)
    assert average.patterns[name] == nm.Pattern(2, 4)
    shared = "model.shared.weight"
    torch.testing.assert_close(average.tensors[shared], kept["sums"][shared] / 2)
    assert torch.equal(average.tensors["lm_head.weight"], average.tensors[shared])


def test_only_the_last_epochs_are_averaged() -> None:
    for given, epochs in (((-1, 25), 3), ((7, -1), 7), ((2, 25), 2)):
        trainer = SimpleNamespace(
            max_epochs=given[0],
            max_steps=given[1],
            num_training_batches=20,
            accumulate_grad_batches=2,
        )
        assert planned_epochs(trainer) == epochs


class StopAtBatch(Callback):
    """SIGTERM to this very process after a number of batches."""

    def __init__(self, batch: int) -> None:
        self.left = batch

    def on_train_batch_end(self, *_: object) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("batch", [4, 13])
def test_sigterm_and_the_same_command_again_is_bit_identical(batch: int, tmp_path: Path) -> None:
    """Dropout, averaging, and a step that is half way through its accumulated batches."""
    more = ["--trainer.accumulate_grad_batches", "2", "--task.average", "2"]
    whole = prepare(words(tmp_path, *more, run="whole", epochs=3))
    wanted = whole.fit()
    batches = whole.trainer.num_training_batches
    assert 4 < batches < 13 < 2 * batches
    stopped = prepare(words(tmp_path, *more, epochs=3), [StopAtBatch(batch)])
    assert stopped.fit() is None
    resumed = prepare(words(tmp_path, *more, epochs=3))
    assert resumed.resume is not None
    half_way = batch % batches % 2 == 1
    saved = torch.load(resumed.resume, weights_only=True)
    assert ("gradients" in saved) == half_way
    got = resumed.fit()
    assert_same_bits(whole, resumed)
    for name, value in wanted.items():
        if "second" not in name and name != "sad":
            assert got[name] == value, name
    tensors = [Checkpoint.read(run.folder.path).tensors for run in (whole, resumed)]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


def test_kill_9_and_the_same_command_again_is_bit_identical(tmp_path: Path) -> None:
    whole = prepare(words(tmp_path, run="whole", epochs=3))
    whole.fit()
    command = [sys.executable, "-m", "nmsparsity", "train", *words(tmp_path, epochs=3)]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (tmp_path / "run" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (tmp_path / "run" / "result.json").exists()
    resumed = prepare(words(tmp_path, epochs=3))
    assert resumed.resume is not None
    resumed.fit()
    assert_same_bits(whole, resumed)


def test_the_vocabulary_of_the_run_is_kept(tmp_path: Path) -> None:
    first = prepare(words(tmp_path, epochs=1))
    first.fit()
    with (
        (tmp_path / "set" / "train.en").open("a") as file,
        (tmp_path / "set" / "train.de").open("a") as other,
    ):
        file.write("quite another word " * 500 + "\n")
        other.write("ganz anderes Wort " * 500 + "\n")
    more = prepare(words(tmp_path, "--ckpt_path", "last", epochs=2))
    assert more.task.vocabulary.text == first.task.vocabulary.text
    assert prepare(words(tmp_path, run="new")).task.vocabulary.text != first.task.vocabulary.text


class Curve(Callback):
    """The losses of all steps."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, *_: object) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


NO_DROPOUT = ("--task.transformer.dropout", "0.0")


def losses(folder: Path, *more: str, run: str) -> tuple[Run, list[float]]:
    curve = Curve()
    ready = prepare(words(folder, *NO_DROPOUT, *more, run=run, epochs=1), [curve])
    ready.fit()
    return ready, curve.losses


def test_accumulated_batches_weigh_every_token_alike(tmp_path: Path) -> None:
    """Two batches accumulated are the gradient of their pairs together."""
    run = prepare(words(tmp_path, *NO_DROPOUT, "--trainer.accumulate_grad_batches", "2", epochs=1))
    task, seen = run.task, {}

    class Look(Callback):
        def on_train_start(self, trainer, module) -> None:
            pad = module.vocabulary.pad
            batches = list(trainer.datamodule.train_dataloader())[:2]
            assert len({int((b.target != pad).sum()) for b in batches}) == 2
            total = sum(
                functional.cross_entropy(
                    module(batch.source, batch.target).flatten(0, 1),
                    batch.target.flatten(),
                    ignore_index=pad,
                    label_smoothing=0.1,
                    reduction="sum",
                )
                for batch in batches
            ) / sum(int((batch.target != pad).sum()) for batch in batches)
            parameters = [p for p in task.model.parameters() if p.requires_grad]
            seen["want"] = list(torch.autograd.grad(total, parameters))

        def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
            grads = [p.grad for p in task.model.parameters() if p.requires_grad]
            seen.setdefault("got", [grad.clone() for grad in grads])

    run.trainer.callbacks.append(Look())
    run.trainer.gradient_clip_val = None
    run.fit()
    torch.testing.assert_close(seen["got"], seen["want"], rtol=1e-4, atol=1e-6)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    one, curve = losses(tmp_path, run="one")
    code = (
        "import json, sys; from pathlib import Path; "
        "from tests.test_tasks_translation_train import losses; "
        "from nmsparsity.tasks.train import quiet; quiet(); "
        f"run, curve = losses(Path({str(tmp_path)!r}), '--trainer.devices', '2', "
        "'--trainer.strategy', 'ddp', run='two'); "
        f"run.trainer.is_global_zero and Path({str(tmp_path / 'curve.json')!r}).write_text("
        "json.dumps(curve))"
    )
    (tmp_path / "two.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    subprocess.run(
        [sys.executable, str(tmp_path / "two.py")], check=True, timeout=400, env=environment
    )
    torch.testing.assert_close(
        json.loads((tmp_path / "curve.json").read_text()), curve, rtol=2e-4, atol=1e-5
    )
    results = [json.loads((tmp_path / run / "result.json").read_text()) for run in ("one", "two")]
    assert results[0]["sentences"] == results[1]["sentences"] == 13
    assert results[0]["tokens"] == results[1]["tokens"]
    assert results[1]["loss"] == pytest.approx(results[0]["loss"], rel=1e-3)
    assert one.trainer.global_step == len(curve)


def test_the_loss_is_that_of_every_token_after_those_before(vocabulary: Vocabulary) -> None:
    torch.manual_seed(0)
    task = TranslationTask(
        vocabulary, 20, Transformer(width=16, feed_forward=16, heads=2, dropout=0.0)
    ).eval()
    source = torch.tensor([[5, 6, 7, vocabulary.end], [8, 9, vocabulary.end, vocabulary.pad]])
    target = torch.tensor([[4, 5, vocabulary.end], [6, vocabulary.end, vocabulary.pad]])
    scores = task(source, target)
    assert scores.shape == (2, 3, vocabulary.size)
    later = target.clone()
    later[0, 1] = 9
    assert torch.equal(task(source, later)[0, :2], scores[0, :2]), "no look ahead"
    alone = task(source[1:, :3], target[1:, :2])
    torch.testing.assert_close(alone[0], scores[1, :2])
    counted = Scores(vocabulary.pad)
    counted.add_loss(scores, target)
    counted.add_texts(torch.tensor([1, 0]), ["b", "a"])
    pairs = Pairs(["x", "y"], ["a", "b"])
    result = counted.compute(pairs, lambda total: total)
    logs = scores.detach().log_softmax(-1)
    by_hand = -sum(
        float(logs[row, place, target[row, place]])
        for row, place in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))
    )
    assert result["loss"] == pytest.approx(by_hand / 5, rel=1e-5)
    assert result["tokens"] == 5


def test_a_missing_translation_is_an_error() -> None:
    pairs = Pairs(["x", "y"], ["a", "b"])
    scores = Scores(0)
    scores.add_loss(torch.zeros(1, 1, 4), torch.ones(1, 1, dtype=torch.int64))
    scores.add_texts(torch.tensor([1, -1]), ["b", "none"])
    with pytest.raises(RuntimeError, match="1 translations of 2 sentences"):
        scores.compute(pairs, lambda total: total)
    assert scores.compute(pairs, lambda total: total, whole=False)["sentences"] == 1


def test_models_are_rebuilt_from_what_is_said_about_them(vocabulary: Vocabulary) -> None:
    model = new(Transformer(width=16, feed_forward=32, heads=2), vocabulary, 24)
    again = described(describe(model))
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert {name: value.shape for name, value in again.state_dict().items()} == shapes
    assert again.config.to_dict() == model.config.to_dict()
    for text in ("{}", "no", '{"model_type": "bert"}', '{"model_type": "nothing"}'):
        with pytest.raises(ValueError, match=r"model\.json: no description"):
            described(text)
    with pytest.raises(ValueError, match="width 10: want a multiple of the 4 heads"):
        new(Transformer(width=10, heads=4), vocabulary, 24)


def test_a_saved_model_goes_on_training(
    tmp_path: Path, vocabulary: Vocabulary, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another architecture than ours, which needs its folder no more once it is in a run."""
    config = BartConfig(
        **{"vocab_size": 300, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1},
        **{"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 40},
        **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "bos_token_id": None},
        **{"pad_token_id": vocabulary.pad, "eos_token_id": vocabulary.end},
        **{"decoder_start_token_id": vocabulary.end, "forced_eos_token_id": None},
    )
    torch.manual_seed(0)
    saved = BartForConditionalGeneration(config)
    saved.save_pretrained(tmp_path / "bart")
    (tmp_path / "bart" / "tokenizer.json").write_text(vocabulary.text)
    more = ["--task.pretrained", str(tmp_path / "bart")]
    with pytest.raises(
        ValueError, match=r"of 300 tokens, than that of the data, of 280; .*vocabulary_file"
    ):
        prepare(words(tmp_path, *more, "--data.vocabulary_size", "280"))
    own = ["--data.vocabulary_file", str(tmp_path / "bart" / "tokenizer.json")]
    run = prepare(words(tmp_path, *more, *own, epochs=1))
    assert torch.equal(run.task.model.state_dict()["lm_head.weight"], saved.lm_head.weight)
    run.fit()
    for file in (tmp_path / "bart").iterdir():
        file.unlink()

    capsys.readouterr()
    quiet = ["--trainer.enable_progress_bar", "false"]
    assert cli.main(["evaluate", str(tmp_path / "run"), *quiet]) == 0
    assert capsys.readouterr().out.startswith("BLEU ")
    with pytest.raises(FileNotFoundError, match=r"no folder with a config\.json"):
        prepare(words(tmp_path, "--task.pretrained", str(tmp_path / "bart"), run="other"))


def test_adam_and_its_schedules(vocabulary: Vocabulary) -> None:
    model = new(Transformer(width=16, feed_forward=32, heads=2), vocabulary, 24)
    optimizer = AdamW(lr=0.1, weight_decay=0.3).build(model)
    group = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.dim() > 1 and "shared" not in name
            assert group[id(parameter)] == (0.3 if matrix else 0.0), name
    root = AdamW(warmup_steps=4)
    assert [root.share(step, 2, 10) for step in (0, 2, 4, 16)] == [0.0, 0.5, 1.0, 0.5]
    cosine = AdamW(schedule="cosine", warmup_steps=2)
    assert [round(cosine.share(step, 2, 10), 3) for step in (1, 2, 6, 10)] == [0.5, 1, 0.5, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quick_dropout_drops_as_many_and_keeps_the_mean(dtype: torch.dtype) -> None:
    x = torch.ones(1001, 301, dtype=dtype, requires_grad=True)
    for p in (0.1, 0.25, 0.9):
        torch.manual_seed(3)
        with QuickDropout():
            dropped = functional.dropout(x, p)
        kept = dropped != 0
        # Five standard deviations of so many draws.
        assert abs(float(kept.float().mean()) - (1 - p)) < 5 * (p * (1 - p) / x.numel()) ** 0.5
        assert torch.equal(dropped[kept], torch.tensor(1 / (1 - p)).to(dtype).expand(kept.sum()))
        (grad,) = torch.autograd.grad(dropped.sum(), x)
        assert torch.equal(grad, dropped)
        torch.manual_seed(3)
        with QuickDropout():
            assert torch.equal(functional.dropout(x, p), dropped)
        columns = kept.float().mean(0)
        assert float(columns.std()) < 1.5 * (p * (1 - p) / len(x)) ** 0.5, "no column is special"


def test_quick_dropout_leaves_the_rest_to_torch() -> None:
    x = torch.ones(8)
    with QuickDropout():
        assert functional.dropout(x, 0.5, training=False) is x
        assert torch.equal(functional.dropout(x, 0.0), x)
        assert torch.equal(functional.dropout(x, 1.0), torch.zeros(8))
        with pytest.raises(ValueError, match="dropout probability"):
            functional.dropout(x, 1.5)


def test_attention_as_asked(vocabulary: Vocabulary) -> None:
    """Two ways to compute the same."""
    source = torch.tensor([[5, 6, 7, vocabulary.end], [8, 9, vocabulary.end, vocabulary.pad]])
    scores = {}
    for attention in ("eager", "sdpa"):
        torch.manual_seed(0)
        task = TranslationTask(
            vocabulary,
            20,
            Transformer(width=16, feed_forward=16, heads=2, dropout=0.0),
            attention=attention,
        )
        assert task.model.config._attn_implementation == attention
        scores[attention] = task(source, source)
    torch.testing.assert_close(scores["eager"], scores["sdpa"])


@pytest.mark.filterwarnings("ignore:.*no bf16 instructions")
def test_bfloat16_autocast(tmp_path: Path) -> None:
    _, curve = losses(tmp_path, "--trainer.precision", "bf16-mixed", run="half")
    _, full = losses(tmp_path, run="full")
    torch.testing.assert_close(curve, full, rtol=0.05, atol=0.05)
    assert curve != full


@pytest.mark.parametrize("has_it", [True, False])
def test_bf16_without_its_instructions_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_it: bool
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_it)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        losses(tmp_path, "--trainer.precision", "bf16-mixed", run="half")
    slow = [str(one.message) for one in said if "no bf16 instructions" in str(one.message)]
    assert len(slow) == (0 if has_it else 1)
    assert all("--trainer.precision 32-true" in text for text in slow)


def test_a_training_without_validation_says_so_each_time(tmp_path: Path, capsys) -> None:
    line = ["train", *words(tmp_path, "--trainer.limit_val_batches", "0", epochs=1)]
    for _ in range(2):  # The second time its result is read from the folder.
        assert cli.main(line) == 0
        assert "1 epochs, not validated (" in capsys.readouterr().out
