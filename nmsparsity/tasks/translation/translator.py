"""Translator: a trained network with its vocabulary, from text to text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from nmsparsity.promises import declare
from nmsparsity.sites import sites
from nmsparsity.tasks.checkpoint import Checkpoint
from nmsparsity.tasks.translation.data import VOCABULARY
from nmsparsity.tasks.translation.decoding import Decoder
from nmsparsity.tasks.translation.models import described
from nmsparsity.tasks.translation.task import MODEL
from nmsparsity.tasks.translation.vocabulary import Vocabulary

_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+")
_LINES_AT_A_TIME = 1024


@dataclass
class Translator:
    """Translates lines of text.

    Args:
        model: an encoder-decoder in eval mode, dense or compressed.
        vocabulary: its own.
        decoder: how translations are looked for.
        batch_tokens: of the sources translated at a time, padding included.

    Attributes:
        unfinished: numbers of the lines, from 1, whose translation was stopped at the limit.
    """

    model: nn.Module
    vocabulary: Vocabulary
    decoder: Decoder
    batch_tokens: int = 2048
    unfinished: list[int] = field(default_factory=list)

    def __call__(self, lines: Iterable[str]) -> Iterator[str]:
        """One translation for each line; that of an empty line is empty.

        A line that is longer than the model takes is translated sentence by sentence.

        Raises:
            ValueError: for a single sentence that is longer, naming its line; nothing is cut.
        """
        some: list[str] = []
        done = 0
        for line in lines:
            some.append(line)
            if len(some) == _LINES_AT_A_TIME:
                yield from self._translate(some, done)
                some, done = [], done + len(some)
        yield from self._translate(some, done)

    def check(self, lines: Iterable[str]) -> None:
        """Refuse now what a call would refuse at its turn.

        Raises:
            ValueError: for a sentence that is longer than the model takes.
        """
        for number, line in enumerate(lines, 1):
            self._parts(line, number)

    def _translate(self, lines: Sequence[str], before: int) -> list[str]:
        parts = [self._parts(line, before + number) for number, line in enumerate(lines, 1)]
        flat = [(number, ids) for number, pieces in enumerate(parts) for ids in pieces]
        found: dict[int, list[str]] = {number: [] for number in range(len(lines))}
        texts = self._decode([ids for _, ids in flat])
        for (number, _), (text, complete) in zip(flat, texts, strict=True):
            found[number].append(text)
            if not complete:
                self.unfinished.append(before + number + 1)
        return [" ".join(pieces) for pieces in found.values()]

    def _parts(self, line: str, number: int) -> list[list[int]]:
        """The tokens of a line: of all of it, or of as many sentences at a time as fit."""
        if not line.strip():
            return []
        limit = self.decoder.limit
        (whole,) = self.vocabulary.encode([line])
        if len(whole) <= limit:
            return [whole]
        parts: list[str] = []
        for sentence in _SENTENCE_END.split(line.strip()):
            together = f"{parts[-1]} {sentence}" if parts else sentence
            if parts and len(self.vocabulary.encode([together])[0]) <= limit:
                parts[-1] = together
            else:
                parts.append(sentence)
        encoded = self.vocabulary.encode(parts)
        if too_long := [ids for ids in encoded if len(ids) > limit]:
            raise ValueError(
                f"line {number}: a sentence of {len(too_long[0])} tokens, the model takes {limit} "
                "and nothing is cut silently; break the line up"
            )
        return encoded

    def _decode(self, sentences: Sequence[list[int]]) -> list[tuple[str, bool]]:
        """Text of each, and whether it was finished; sentences of like length together."""
        order = sorted(range(len(sentences)), key=lambda number: len(sentences[number]))
        found: dict[int, tuple[str, bool]] = {}
        for batch in _batches(order, sentences, self.batch_tokens):
            source = pad_sequence(
                [torch.tensor(sentences[n]) for n in batch], True, self.vocabulary.pad
            )
            translations = self.decoder(self.model, self.vocabulary, source)
            found |= {
                n: (its.text, its.complete) for n, its in zip(batch, translations, strict=True)
            }
        return [found[number] for number in range(len(sentences))]


def _batches(
    order: Sequence[int], sentences: Sequence[list[int]], tokens: int
) -> Iterator[list[int]]:
    batch: list[int] = []
    for number in order:
        if batch and (len(batch) + 1) * len(sentences[number]) > tokens:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def read_translator(
    path: str | Path,
    beam: int = 4,
    length_penalty: float = 0.6,
    compress: bool = False,
) -> Translator:
    """The translator in a run folder, checkpoint or packed file of ``nmsparsity train``.

    Args:
        path: see `Checkpoint.read`.
        beam, length_penalty: see `Decoder`.
        compress: run its N:M layers packed, each by the kernel that is fastest here.

    Raises:
        FileNotFoundError, ValueError: as `Checkpoint.read`, and if the file is no translator.
    """
    return translator_of(Checkpoint.read(path), beam, length_penalty, compress)


def translator_of(
    checkpoint: Checkpoint, beam: int = 4, length_penalty: float = 0.6, compress: bool = False
) -> Translator:
    """`read_translator`, of what is read already."""
    texts = checkpoint.attachments
    if missing := [name for name in (MODEL, VOCABULARY) if name not in texts]:
        raise ValueError(
            f"{checkpoint.path}: no translator, it holds no {' and no '.join(missing)}: want a run "
            "folder, checkpoint or packed file of 'nmsparsity train --kind translation'"
        )
    vocabulary, model = Vocabulary(texts[VOCABULARY]), described(texts[MODEL])
    checkpoint.load_into(model)
    rows = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if rows < vocabulary.size:
        raise ValueError(
            f"{checkpoint.path}: its vocabulary has {vocabulary.size:,} tokens, its model {rows:,}"
        )
    model.eval()
    found = {site.name: site for site in sites(model)}
    declare({found[n]: its for n, its in checkpoint.patterns.items() if n in found})
    decoder = Decoder(beam, length_penalty, _limit(checkpoint, model))
    if compress:
        model = compressed(model, vocabulary, decoder)
    return Translator(model, vocabulary, decoder)


def _limit(checkpoint: Checkpoint, model: Any) -> int:
    """Tokens of a sentence: those the training kept to, and the model has positions for."""
    data = (checkpoint.config or {}).get("data") or {}
    known = (data.get("max_length"), getattr(model.config, "max_position_embeddings", None))
    return min((int(limit) for limit in known if limit), default=1024)


def compressed(model: nn.Module, vocabulary: Vocabulary, decoder: Decoder) -> nn.Module:
    """A copy with packed layers, each chosen by timing it as 8 sentences of 16 tokens use it."""
    from nmsparsity.compression import compress

    source: Tensor = torch.full((8, 16), vocabulary.end)
    return compress(model, lambda made: decoder(made, vocabulary, source))
