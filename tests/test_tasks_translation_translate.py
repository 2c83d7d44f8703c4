"""Translating: greedy and beam search against searches by hand, and the command itself."""

from __future__ import annotations

import io
import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nmsparsity import cli
from nmsparsity.tasks.train import prepare
from nmsparsity.tasks.translation.decoding import Decoder
from nmsparsity.tasks.translation.models import Transformer, new
from nmsparsity.tasks.translation.translator import Translator, read_translator
from nmsparsity.tasks.translation.vocabulary import Vocabulary
from tests.images import lightning_warnings
from tests.sentences import sentences, words

pytestmark = lightning_warnings
QUIET = ["--trainer.enable_progress_bar", "false"]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    english, german = sentences(100)
    return Vocabulary.train([*english, *german], 300)


@pytest.fixture(scope="module")
def model(vocabulary: Vocabulary) -> nn.Module:
    torch.manual_seed(1)
    made = new(Transformer(width=16, feed_forward=16, heads=2), vocabulary, 40).eval()
    # Of a few tokens only: then all translations can be tried.
    with torch.no_grad():
        made.final_logits_bias[0, 6:] = -1e4
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("translate")
    assert prepare(words(folder, epochs=10)).fit() is not None
    return folder / "run"


@torch.no_grad()
def log_probability(model: nn.Module, source: Tensor, target: list[int]) -> float:
    start = torch.tensor([[model.config.decoder_start_token_id, *target[:-1]]])
    logs = model(input_ids=source, decoder_input_ids=start).logits
    logs[..., model.config.pad_token_id] = -math.inf
    picked = logs.log_softmax(-1)[0, range(len(target)), target]
    return float(picked.sum())


def test_greedy_takes_the_likeliest_each_time(model: nn.Module, vocabulary: Vocabulary) -> None:
    source = torch.tensor([[5, 4, 3, vocabulary.end]])
    want: list[int] = []
    while len(want) < 6 and (not want or want[-1] != vocabulary.end):
        want.append(
            max(range(1, 6), key=lambda token: log_probability(model, source, [*want, token]))
        )
    (found,) = Decoder(1, 0.6, 6)(model, vocabulary, source)
    assert found.text == vocabulary.decode(want)
    assert found.complete == (want[-1] == vocabulary.end)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
def test_a_wide_beam_finds_the_best_of_all(
    penalty: float, model: nn.Module, vocabulary: Vocabulary
) -> None:
    source = torch.tensor([[3, 5, vocabulary.end]])
    longest, tokens = 3, [2, 3, 4, 5]
    scores: dict[tuple[int, ...], float] = {}
    for length in range(longest):
        for body in itertools.product(tokens, repeat=length):
            ended = (*body, vocabulary.end)
            scores[ended] = log_probability(model, source, list(ended)) / len(ended) ** penalty
    for body in itertools.product(tokens, repeat=longest):
        scores[body] = log_probability(model, source, list(body)) / longest**penalty
    best = max(scores, key=lambda key: scores[key])
    (found,) = Decoder(64, penalty, longest)(model, vocabulary, source)
    assert found.text == vocabulary.decode(list(best))


def test_batches_translate_as_single_sentences_do(run: Path) -> None:
    translator = read_translator(run)
    lines = [*sentences(9, 5)[0], "", "  "]
    together = list(translator(lines))
    alone = [next(iter(translator([line]))) for line in lines]
    assert together == alone
    assert together[-2:] == ["", ""]
    translator.batch_tokens = 1
    assert list(translator(lines)) == together
    assert translator.decoder.limit == 40


def test_long_lines_are_split_at_sentences_or_refused(run: Path) -> None:
    translator = read_translator(run)
    short, other = "man sees dog.", "child finds house."
    limit = translator.decoder.limit
    count = 2 * limit
    parts = translator._parts(" ".join([short, other] * count), 1)
    assert len(parts) > 2
    assert all(len(part) <= limit for part in parts)
    said = " ".join(translator.vocabulary.decode(part) for part in parts)
    assert said == " ".join([short, other] * count), "nothing is lost"
    with pytest.raises(ValueError, match=r"line 2: a sentence of \d+ tokens, the model takes 40"):
        list(translator(["man", "man " * 50]))


def test_what_is_stopped_is_told(model: nn.Module, vocabulary: Vocabulary) -> None:
    with torch.no_grad():
        before = model.final_logits_bias[0, vocabulary.end].clone()
        model.final_logits_bias[0, vocabulary.end] = -1e4
    translator = Translator(model, vocabulary, Decoder(2, 0.6, 40))
    list(translator(["a", "", "b"]))
    assert translator.unfinished == [1, 3]
    with torch.no_grad():
        model.final_logits_bias[0, vocabulary.end] = before


def test_the_tour(run: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    """Packed and unpacked translate and score alike, from the file alone."""
    packed, output = tmp_path / "model.safetensors", tmp_path / "out.de"
    assert cli.main(["pack", str(run), "-o", str(packed)]) == 0
    assert cli.main(["inspect", str(packed)]) == 0
    said, table = capsys.readouterr().out.split("\n", 1)
    assert "26 of 30 weights are N:M" in table, "not embedding, output bias, positions of two sides"
    assert "the same as lm_head.weight" in table or "the same as model." in table
    state = read_translator(run).model.state_dict()
    once = {tensor.data_ptr(): tensor.nbytes for tensor in state.values()}
    assert f"of {sum(once.values()):,} dense" in said
    assert len(once) < len(state), "tied weights count once"
    for file in (run, packed):
        assert cli.main(["evaluate", str(file), *QUIET, "--data.split", "test"]) == 0
    of_run, of_packed = capsys.readouterr().out.split("BLEU ")[1:]
    assert of_run.split(" sentences")[0] == of_packed.split(" sentences")[0]
    assert "BLEU|nrefs:1|case:mixed" in of_run
    assert "chrF2|nrefs:1" in of_run
    written = (run / "translations-test.tsv").read_text(encoding="utf-8").splitlines()
    lines = [row.split("\t")[0] for row in written[1:]]
    (tmp_path / "in.en").write_text("\n".join(lines) + "\n\nman sees tree.")
    command = ["--input", str(tmp_path / "in.en"), "--output", str(output)]
    assert cli.main(["translate", str(packed), *command]) == 0
    text = output.read_text(encoding="utf-8")
    got = text.split("\n")
    assert got[: len(lines)] == [row.split("\t")[2] for row in written[1:]]
    assert got[len(lines)] == ""
    assert len(got) == len(lines) + 3, "one line for each"
    monkeypatch.setattr(
        "sys.stdin", io.TextIOWrapper(io.BytesIO((tmp_path / "in.en").read_bytes()))
    )
    for options in ([], ["--compress"]):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        if options:
            options += ["--input", str(tmp_path / "in.en")]
        assert cli.main(["translate", str(run), *options]) == 0
        assert capsys.readouterr().out == text


def test_compress_packs_and_changes_no_token(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every kernel forced: on this machine small layers may stay dense."""
    from nmsparsity.compression import compress, compressed_report

    dense = read_translator(run, beam=2)
    made = {}

    def forced(model: nn.Module, example: object) -> nn.Module:
        made["by measuring"] = compress(model, example)
        return compress(model, example, backend="reference")

    monkeypatch.setattr("nmsparsity.compression.compress", forced)
    packed = read_translator(run, beam=2, compress=True)
    report = compressed_report(packed.model)
    could = [row for row in report.rows if row.pattern is not None]
    assert len(could) == 6 + 2 * 10
    assert all(row.kernel == "reference" for row in could)
    measured = compressed_report(made["by measuring"]).rows
    assert all(row.ms_packed is not None for row in measured if row.pattern is not None)
    lines = sentences(9, 5)[0]
    assert list(packed(lines)) == list(dense(lines))


def test_bench_of_a_translator(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cli.main(["bench", str(run), "--batch", "1", "3", "--rounds", "1"]) == 0
    said = capsys.readouterr().out
    assert "not run: channels_last, compile, onnxruntime, openvino: a translator is a loop" in said
    assert f"greedy translation by {run}, batch 1: 1 turns each" in said
    assert f"greedy translation by {run}, batch 3: 1 turns each" in said
    errors = [line.split()[-1] for line in said.splitlines() if line.startswith("packed  ")]
    assert len(errors) == 2
    assert all(float(error) < 1e-4 for error in errors)
    (run.parent / "set").rename(run.parent / "elsewhere")
    assert cli.main(["bench", str(run), "--rounds", "1"]) == 2
    assert "set NMSPARSITY_DATA" in capsys.readouterr().err
    (run.parent / "elsewhere").rename(run.parent / "set")


def test_mistakes_are_one_line(run: Path, tmp_path: Path, capsys) -> None:
    torch.save({"weight": torch.ones(2, 2)}, tmp_path / "file.pt")
    (tmp_path / "long.txt").write_text("ok\n" + "man " * 60 + "\n")
    for command, said in (
        (
            [str(tmp_path / "file.pt")],
            "file.pt: no translator, it holds no model.json and no tokenizer.json: want a run",
        ),
        ([str(tmp_path / "none")], "none: no such checkpoint"),
        ([str(run), "--beam", "0"], "beam 0: want 1 or more"),
        (
            [str(run), "--input", str(tmp_path / "long.txt"), "--output", str(tmp_path / "out")],
            "line 2: a sentence of",
        ),
    ):
        assert cli.main(["translate", *command]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.tmp").exists()
