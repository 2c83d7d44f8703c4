"""Translation where things are not as usual: other folders, other vocabularies, odd text files."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import Callback
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from nmsparsity import cli
from nmsparsity.tasks.checkpoint import Checkpoint
from nmsparsity.tasks.train import prepare
from nmsparsity.tasks.translation.adam import AdamW
from nmsparsity.tasks.translation.models import (
    Transformer,
    describe,
    described,
    pretrained,
    start_of,
)
from nmsparsity.tasks.translation.pairs import read_pairs
from nmsparsity.tasks.translation.task import TranslationTask
from nmsparsity.tasks.translation.translator import Translator, translator_of
from nmsparsity.tasks.translation.vocabulary import Vocabulary
from tests.images import lightning_warnings
from tests.sentences import sentences, words

pytestmark = lightning_warnings


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    english, german = sentences(100)
    return Vocabulary.train([*english, *german], 300)


def bart(folder: Path, vocabulary: Vocabulary, positions: int = 40) -> BartForConditionalGeneration:
    config = BartConfig(
        **{"vocab_size": vocabulary.size, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1},
        **{"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": positions},
        **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "bos_token_id": None},
        **{"pad_token_id": vocabulary.pad, "eos_token_id": vocabulary.end},
        **{"decoder_start_token_id": vocabulary.end, "forced_eos_token_id": None},
    )
    torch.manual_seed(0)
    made = BartForConditionalGeneration(config)
    folder.mkdir()
    (folder / "tokenizer.json").write_text(vocabulary.text)
    return made


def test_decoding_is_as_set_here_not_as_the_folder_says(
    tmp_path: Path, vocabulary: Vocabulary
) -> None:
    """Else a training would decode otherwise than its own checkpoints do."""
    model = bart(tmp_path / "bart", vocabulary)
    model.generation_config.min_length, model.generation_config.forced_bos_token_id = 12, 7
    model.save_pretrained(tmp_path / "bart")
    read = pretrained(str(tmp_path / "bart"), vocabulary, 40)
    for its in (read, described(describe(read))):
        assert its.generation_config.forced_bos_token_id is None
        assert not its.generation_config.min_length


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_folders_are_trained_in_fp32(
    dtype: torch.dtype, tmp_path: Path, vocabulary: Vocabulary
) -> None:
    bart(tmp_path / "bart", vocabulary).to(dtype).save_pretrained(tmp_path / "bart")
    read = pretrained(str(tmp_path / "bart"), vocabulary, 40)
    for its in (read, described(describe(read))):
        assert {p.dtype for p in its.parameters()} == {torch.float32}


def test_a_model_may_have_more_rows_than_its_vocabulary(
    tmp_path: Path, vocabulary: Vocabulary
) -> None:
    sizes: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    special = {"pad_token_id": vocabulary.pad, "eos_token_id": vocabulary.end}
    start = {"decoder_start_token_id": vocabulary.pad}
    model = T5ForConditionalGeneration(T5Config(vocab_size=328, **sizes, **special, **start))
    model.save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match=r"of 328 tokens, .* of 300; give .* FILE, a tokenizer"):
        pretrained(str(tmp_path / "t5"), vocabulary, 40)
    (tmp_path / "t5" / "tokenizer.json").write_text(vocabulary.text)
    pretrained(str(tmp_path / "t5"), vocabulary, 40)
    other = Vocabulary.train(["other words of the same number"] * 50, 280)
    with pytest.raises(ValueError, match=r"give the model's own by --data\.vocabulary_file .*json"):
        pretrained(str(tmp_path / "t5"), other, 40)


def test_more_tokens_than_the_folder_takes(tmp_path: Path, vocabulary: Vocabulary) -> None:
    bart(tmp_path / "bart", vocabulary, positions=20).save_pretrained(tmp_path / "bart")
    with pytest.raises(ValueError, match=r"takes 20 tokens; give --data\.max_length 20 instead"):
        pretrained(str(tmp_path / "bart"), vocabulary, 40)


def test_weights_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    assert prepare(words(tmp_path, epochs=1)).fit() is not None
    again = ["--task.init_from", str(tmp_path / "run")]
    assert prepare(words(tmp_path, *again, epochs=1, run="same")).fit() is not None
    for split in ("train", "validation"):
        file = tmp_path / "set" / f"{split}.en"
        file.write_text(file.read_text().replace("e", "ui"))
    run = prepare(words(tmp_path, *again, epochs=1, run="other"))
    with pytest.raises(ValueError, match=r"another vocabulary .* --data\.vocabulary_file"):
        run.fit()


def test_a_start_that_was_refused_leaves_no_settings_to_keep_to(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        prepare(words(tmp_path, "--sparsity.method", "nonsense", epochs=1)).fit()
    assert prepare(words(tmp_path, epochs=1)).fit() is not None
    with pytest.raises(ValueError, match="holds a run with other settings"):
        prepare(words(tmp_path, epochs=2))


def test_an_interrupt_from_the_keyboard_loses_nothing(tmp_path: Path) -> None:
    class Interrupt(Callback):
        def on_train_epoch_start(self, trainer: Any, module: TranslationTask) -> None:
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    assert prepare(words(tmp_path), [Interrupt()]).fit() is None
    assert prepare(words(tmp_path)).fit() is not None
    assert prepare(words(tmp_path, run="whole")).fit() is not None
    found, whole = (
        Checkpoint.read(tmp_path / run / "last.ckpt").tensors for run in ("run", "whole")
    )
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_average_without_a_validation(tmp_path: Path) -> None:
    more = ["--task.average", "2", "--trainer.limit_val_batches", "0"]
    result = prepare(words(tmp_path, *more, epochs=2)).fit()
    assert result is not None
    assert "averaged_bleu" not in result
    assert (tmp_path / "run" / "averaged.ckpt").exists()


def test_the_loss_of_a_step_is_that_of_all_its_batches(tmp_path: Path) -> None:
    """Per token: of a last, shorter step of accumulated batches too."""
    seen: list[float] = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: Any, module: TranslationTask, *_: Any) -> None:
            seen.append(float(trainer.callback_metrics.get("train/loss", "nan")))

    more = ["--trainer.accumulate_grad_batches", "3", "--task.optimizer.lr", "0"]
    run = prepare(words(tmp_path, *more, epochs=1), [Look()])
    assert run.fit() is not None
    assert len(seen) % 3, "the last step is a shorter one"
    with (tmp_path / "run" / "history.csv").open() as file:
        (row,) = csv.DictReader(file)
    steps = [value for value in dict.fromkeys(seen) if value == value]
    assert len(steps) == -(-len(seen) // 3)
    assert float(row["train/loss"]) == steps[-1]
    # Weights stay as they are: steps differ by their sentences alone.
    assert max(steps) < 1.2 * min(steps)


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    (tmp_path / "train.en").write_bytes("\ufeffone\r\ntwo \r of them\nthree\n".encode())
    (tmp_path / "train.de").write_bytes(b"eins\nzwei\ndrei \r nicht vier")
    pairs = read_pairs(str(tmp_path), None, "train", ["en", "de"])
    assert pairs.sources == ["one", "two \r of them", "three"]
    assert pairs.targets == ["eins", "zwei", "drei \r nicht vier"]
    (tmp_path / "train.de").write_bytes(b"eins\nzwei\nstra\xdfe\n")
    with pytest.raises(ValueError, match=r"train\.de: line 3 is not UTF-8 \(byte 0xdf\)"):
        read_pairs(str(tmp_path), None, "train", ["en", "de"])


def test_columns_that_are_no_translations(tmp_path: Path) -> None:
    def write(rows: list[Any]) -> None:
        pq.write_table(pa.table({"translation": rows}), tmp_path / "train-0.parquet")

    write([None, {"en": "a", "de": "b"}, {"en": None, "de": "c"}])
    pairs = read_pairs(str(tmp_path), None, "train", ["en", "de"])
    assert (pairs.sources, pairs.targets) == (["", "a", ""], ["", "b", "c"])
    write([1, 2])
    with pytest.raises(ValueError, match="no column of texts by language"):
        read_pairs(str(tmp_path), None, "train", ["en", "de"])
    write([{"en": 1, "de": 2}])
    with pytest.raises(ValueError, match="want texts in 'translation', found 1"):
        read_pairs(str(tmp_path), None, "train", ["en", "de"])


def test_nothing_to_train_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = words(tmp_path)
    for language in ("en", "de"):
        (tmp_path / "set" / f"train.{language}").write_text("")
    assert cli.main(["train", *line]) == 2
    assert "nothing to train on: 0 of 0 pairs kept" in capsys.readouterr().err


def test_settings_that_make_no_sense(vocabulary: Vocabulary) -> None:
    for wrong in ({"heads": 0}, {"width": -32}, {"encoder_layers": -1}, {"activation": "no"}):
        with pytest.raises(ValueError, match="want"):
            Transformer(**wrong)
    for wrong in ({"label_smoothing": 2.0}, {"average": -1}, {"length_penalty": float("nan")}):
        with pytest.raises(ValueError, match="want"):
            TranslationTask(vocabulary, 40, Transformer(16, 16, 1, 1, 2), **wrong)
    with pytest.raises(ValueError, match="warmup_steps -5: want 0 or more"):
        AdamW(warmup_steps=-5)


def test_files_whose_parts_do_not_fit(tmp_path: Path, vocabulary: Vocabulary) -> None:
    model = bart(tmp_path / "bart", vocabulary)
    texts = {"model.json": describe(model), "tokenizer.json": vocabulary.text}
    larger = Vocabulary.train([f"number {7919 * number}" for number in range(400)], 320)
    assert larger.size > vocabulary.size

    def holding(texts: dict[str, str]) -> Checkpoint:
        return Checkpoint(tmp_path / "some.ckpt", model.state_dict(), attachments=texts)

    assert translator_of(holding(texts)).vocabulary.size == vocabulary.size
    with pytest.raises(ValueError, match=r"its vocabulary has 320 tokens, its model 300"):
        translator_of(holding({**texts, "tokenizer.json": larger.text}))
    model.config.decoder_start_token_id = None
    with pytest.raises(ValueError, match="decoder_start_token_id None: want the number"):
        start_of(model)


def test_where_to_write_and_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepare(words(tmp_path, epochs=1)).fit() is not None
    run = str(tmp_path / "run")
    monkeypatch.setattr(sys, "stdin", io.StringIO("a man\n"))
    for where in (tmp_path, tmp_path / "none" / "out.de"):
        assert cli.main(["translate", run, "--output", str(where)]) == 2
        assert f"--output {where}: want a file in a folder that exists" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", None)
    assert cli.main(["translate", run]) == 2
    assert "there is no standard input; give --input FILE" in capsys.readouterr().err
    monkeypatch.setattr(Translator, "_decode", None)  # Refused before anything is translated.
    (tmp_path / "long.en").write_text("a man\n" * 1030 + "man " * 99)
    assert cli.main(["translate", run, "--input", str(tmp_path / "long.en")]) == 2
    assert "line 1031: a sentence of" in capsys.readouterr().err
    checkpoint = Checkpoint.read(run)
    assert not [file for file in checkpoint.path.parent.iterdir() if file.suffix == ".tmp"]
