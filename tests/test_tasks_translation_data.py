"""Pairs of sentences: read, numbered, cleaned, batched by tokens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nmsparsity.tasks.roots import MissingDataError
from nmsparsity.tasks.translation import token_batches
from nmsparsity.tasks.translation.data import TranslationData
from nmsparsity.tasks.translation.encoded import EncodedPairs, Sentences
from nmsparsity.tasks.translation.pairs import Pairs, read_pairs
from nmsparsity.tasks.translation.token_batches import TokenBatches, cuts
from nmsparsity.tasks.translation.vocabulary import Vocabulary
from tests.sentences import sentences, write_parquet_pairs, write_set, write_text

ROOT = Path(__file__).parents[1]
LANGUAGES = ["en", "de"]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    english, german = sentences(100)
    return Vocabulary.train([*english, *german], 300)


@pytest.fixture(scope="module")
def encoded(vocabulary: Vocabulary) -> EncodedPairs:
    return EncodedPairs.encode(Pairs(*sentences(200)), vocabulary)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_every_text_has_a_spelling(text: str) -> None:
    import unicodedata

    vocabulary = _OF_NOTHING
    want = unicodedata.normalize("NFC", text).strip()
    assert vocabulary.decode(vocabulary.encode([text])[0]).strip() == want


_OF_NOTHING = Vocabulary.train(["a"], 258)


def test_a_vocabulary_is_the_same_in_every_process(vocabulary: Vocabulary) -> None:
    code = (
        "from tests.test_tasks_translation_data import *; e, g = sentences(100); "
        "print(Vocabulary.train([*e, *g], 300).text)"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == vocabulary.text
    assert Vocabulary(vocabulary.text).encode(["man sees"]) == vocabulary.encode(["man sees"])
    assert vocabulary.size == 300


def test_marks_in_a_text_are_text(vocabulary: Vocabulary) -> None:
    (ids,) = vocabulary.encode(["a </s> b <pad>"])
    assert ids.count(vocabulary.end) == 1
    assert vocabulary.pad not in ids
    assert vocabulary.decode([*ids, vocabulary.pad, 40]) == "a </s> b <pad>"


@pytest.mark.parametrize(
    ("text", "said"), [("{}", r"no tokenizer\.json"), (None, r"no token <pad>")]
)
def test_what_is_no_vocabulary(text: str | None, said: str, vocabulary: Vocabulary) -> None:
    with pytest.raises(ValueError, match=said):
        Vocabulary(vocabulary.text.replace("<pad>", "<no>") if text is None else text)
    with pytest.raises(ValueError, match="bytes take 256"):
        Vocabulary.train(["a"], 100)


@pytest.mark.parametrize("kind", ["text", "parquet"])
def test_sets_are_read(kind: str, tmp_path: Path) -> None:
    english, german = ["a\u2028b", "two"], ["ä\x85b", "zwei"]
    write = {"text": write_text, "parquet": write_parquet_pairs}[kind]
    write(tmp_path / "set", "dev" if kind == "text" else "validation", english, german)
    pairs = read_pairs("set", tmp_path, "validation", LANGUAGES)
    assert (pairs.sources, pairs.targets) == (english, german)
    back = read_pairs(str(tmp_path / "set"), None, "validation", ["de", "en"])
    assert (back.sources, back.targets) == (german, english)


def test_mismatched_lines_are_an_error(tmp_path: Path) -> None:
    write_text(tmp_path, "train", ["a", "b", ""], ["a", "b"])
    with pytest.raises(ValueError, match=r"train\.en and .*train\.de: 3 lines on one side, 2 on"):
        read_pairs(str(tmp_path), None, "train", LANGUAGES)


def test_what_is_not_there_says_the_remedy(tmp_path: Path) -> None:
    write_parquet_pairs(tmp_path / "set", "train", ["a"], ["b"])
    with pytest.raises(ValueError, match="no fr among de, en"):
        read_pairs("set", tmp_path, "train", ["en", "fr"])
    with pytest.raises(ValueError, match=r"no test-\*\.parquet and no test\.en with test\.de"):
        read_pairs("set", tmp_path, "test", LANGUAGES)
    with pytest.raises(MissingDataError, match=r"hf download wmt/none --repo-type.* --data\.root"):
        read_pairs("wmt/none:de-en", tmp_path, "train", LANGUAGES)


def test_sentences_are_what_was_put_in() -> None:
    lines = [[3, 4, 5], [6], [7, 8]]
    kept = Sentences.of(lines)
    assert [kept[number].tolist() for number in range(3)] == lines
    assert kept.lengths.tolist() == [3, 1, 2]


def test_cleaning_counts_by_rule(vocabulary: Vocabulary) -> None:
    long = "man " * 50
    english = ["man sees dog.", "", " ", "man.", long, "man sees dog finds tree loves house"]
    german = ["Mann sieht Hund.", "Hund", "", "\t", long, "Hund"]
    pairs = EncodedPairs.encode(Pairs(english, german), vocabulary)
    kept, dropped = pairs.cleaned(max_length=40, max_ratio=3)
    assert kept.numbers.tolist() == [0]
    assert (dropped.pairs, dropped.empty, dropped.long, dropped.ratio) == (6, 3, 1, 1)
    assert str(dropped) == (
        "1 of 6 pairs kept; dropped: 3 with an empty side, 1 longer than 40 tokens, 1 with one "
        "side over 3 times as long as the other"
    )
    with pytest.raises(ValueError, match=r"pair 5 has \d+ tokens, the model takes 40; evaluation"):
        pairs.check_length(40)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(30, 90))
def test_cuts_are_as_large_as_they_may(lengths: list[int], tokens: int) -> None:
    rows = np.sort(np.array(lengths))
    ends = cuts(rows, tokens)
    assert ends[-1] == len(rows)
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        assert (end - start) * rows[end - 1] <= tokens
        assert end == len(rows) or (end + 1 - start) * rows[end] > tokens


def test_an_epoch_has_every_pair_once(encoded: EncodedPairs) -> None:
    batches = TokenBatches(encoded, 400, 0, train=True, seed=3)
    epochs = []
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        given = list(batches)
        assert len(given) == len(batches)
        numbers = torch.cat([batch.numbers for batch in given])
        assert sorted(numbers.tolist()) == list(range(200))
        for batch in given:
            assert max(batch.source.numel(), batch.target.numel()) <= 400
            assert batch.step_tokens == int((batch.target != 0).sum())
            for row, number in enumerate(batch.numbers.tolist()):
                want = encoded.source[number]
                assert torch.equal(batch.source[row, : len(want)], want)
                assert not batch.source[row, len(want) :].any()
        epochs.append((numbers.tolist(), sorted(batch.source.shape[0] for batch in given)))
    assert epochs[0][0] != epochs[1][0]
    assert epochs[0][1] == epochs[1][1]
    assert sum(int((b.target == 0).sum()) for b in given) < 0.2 * sum(
        b.target.numel() for b in given
    ), "of like length"


def test_accumulated_batches_know_the_tokens_of_their_step(encoded: EncodedPairs) -> None:
    given = list(TokenBatches(encoded, 400, 0, train=True, accumulate=3))
    assert len(given) % 3
    for start in range(0, len(given), 3):
        step = given[start : start + 3]
        tokens = sum(int((batch.target != 0).sum()) for batch in step)
        assert {batch.step_tokens for batch in step} == {tokens}
    draws = [batch.draws for batch in given]
    assert len(set(draws)) == len(draws)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("world", [2, 3, 64])
def test_processes_share_the_batches(
    world: int, train: bool, encoded: EncodedPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(TokenBatches(encoded, 400, 0, train=train))
    shares = []
    for rank in range(world):
        monkeypatch.setattr(token_batches, "rank_and_world", lambda rank=rank: (rank, world))
        shares.append(list(TokenBatches(encoded, 400, 0, train=train)))
    for number, batch in enumerate(whole):
        parts = [share[number] for share in shares]
        numbers = torch.cat([part.numbers[part.numbers >= 0] for part in parts])
        assert sorted(numbers.tolist()) == sorted(batch.numbers.tolist())
        assert {part.step_tokens for part in parts} == {batch.step_tokens}
        assert sum(int((part.target != 0).sum()) for part in parts) == batch.step_tokens
        assert min(part.source.shape[0] for part in parts) >= 1, "all take part"
        assert len({part.draws for part in parts}) == world


def test_an_epoch_goes_on_in_the_middle(encoded: EncodedPairs) -> None:
    whole = TokenBatches(encoded, 400, 0, train=True, accumulate=2)
    whole.set_epoch(1)
    wanted = list(whole)
    stopped = iter(whole)
    for _ in range(5):
        next(stopped)
    other = TokenBatches(encoded, 400, 0, train=True, accumulate=2)
    other.set_epoch(1)
    other.load_state_dict(whole.state_dict())
    rest = list(other)
    assert len(rest) == len(wanted) - 5
    for got, want in zip(rest, wanted[5:], strict=True):
        assert torch.equal(got.source, want.source)
        assert got[2:].__repr__() == want[2:].__repr__()


def test_the_vocabulary_of_the_checkpoint_comes_first(tmp_path: Path) -> None:
    write_set(tmp_path / "set")
    data = TranslationData("set", str(tmp_path), vocabulary_size=280)
    assert data.vocabulary.size == 280
    texts = {"tokenizer.json": _OF_NOTHING.text}
    assert TranslationData("set", str(tmp_path), attached=texts).vocabulary.size == 258
    (tmp_path / "own.json").write_text(_OF_NOTHING.text)
    own = TranslationData("set", str(tmp_path), vocabulary_file=str(tmp_path / "own.json"))
    assert own.vocabulary.size == 258


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_length": 1}, "max_length 1, batch_tokens 2048: want 2 or more"),
        ({"max_length": 100, "batch_tokens": 99}, "a batch that holds the longest"),
        ({"max_ratio": 0.5}, "max_ratio 0.5: want 1 or more"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TranslationData(**options)


def test_nothing_to_train_or_evaluate_on(tmp_path: Path) -> None:
    write_text(tmp_path / "set", "train", ["a", "b"], ["", ""])
    write_text(tmp_path / "set", "validation", [], [])
    data = TranslationData("set", str(tmp_path), vocabulary_size=258)
    with pytest.raises(ValueError, match="nothing to train on: 0 of 2 pairs kept"):
        data.train_dataloader()
    with pytest.raises(ValueError, match="nothing to evaluate on"):
        data.val_dataloader()
