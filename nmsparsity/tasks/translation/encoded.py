"""EncodedPairs: pairs as token numbers; the rules by which training leaves some out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nmsparsity.tasks.translation.pairs import Pairs
from nmsparsity.tasks.translation.vocabulary import Vocabulary

_CHUNK = 100_000


class Sentences:
    """Many sentences as one tensor of token numbers.

    >>> Sentences.of([[5, 1], [7, 8, 1]])[1]
    tensor([7, 8, 1])
    """

    def __init__(self, tokens: Tensor, lengths: Tensor) -> None:
        self.tokens, self.lengths = tokens, lengths
        self._ends = lengths.cumsum(0)

    @classmethod
    def of(cls, lines: Iterable[Sequence[int]]) -> Sentences:
        """Keeps 32-bit numbers: millions of lists would not fit in memory."""
        parts = [np.asarray(line, dtype=np.int32) for line in lines]
        tokens = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
        lengths = torch.tensor([len(part) for part in parts], dtype=torch.int64)
        return cls(torch.from_numpy(tokens), lengths)

    @classmethod
    def encode(cls, vocabulary: Vocabulary, lines: Sequence[str]) -> Sentences:
        """The token numbers of every line."""
        starts = range(0, len(lines), _CHUNK)
        return cls.of(
            ids for start in starts for ids in vocabulary.encode(lines[start : start + _CHUNK])
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> Tensor:
        end = int(self._ends[number])
        return self.tokens[end - int(self.lengths[number]) : end].long()


@dataclass(frozen=True)
class Dropped:
    """How many pairs training leaves out, and by which rule; prints as a sentence."""

    pairs: int
    empty: int
    long: int
    ratio: int
    max_length: int
    max_ratio: float

    def __str__(self) -> str:
        kept = self.pairs - self.empty - self.long - self.ratio
        return (
            f"{kept:,} of {self.pairs:,} pairs kept; dropped: {self.empty:,} with an empty side, "
            f"{self.long:,} longer than {self.max_length} tokens, {self.ratio:,} with one side "
            f"over {self.max_ratio:g} times as long as the other"
        )


@dataclass(frozen=True)
class EncodedPairs:
    """Pairs of a split by number; ``numbers`` are those that are used, out of all of the split."""

    source: Sentences
    target: Sentences
    numbers: Tensor
    texts: Pairs

    @classmethod
    def encode(cls, texts: Pairs, vocabulary: Vocabulary) -> EncodedPairs:
        """All of them."""
        sides = [Sentences.encode(vocabulary, side) for side in (texts.sources, texts.targets)]
        return cls(sides[0], sides[1], torch.arange(len(texts)), texts)

    def cleaned(self, max_length: int, max_ratio: float) -> tuple[EncodedPairs, Dropped]:
        """Without empty, over-long and lopsided pairs; a pair is counted by the first that applies.

        Args:
            max_length: tokens of a sentence, ``</s>`` among them.
            max_ratio: of the longer to the shorter side, in tokens.
        """
        sides = (self.texts.sources, self.texts.targets)
        written = [
            torch.tensor([bool(its.strip()) for its in side], dtype=torch.bool) for side in sides
        ]
        empty = ~(written[0] & written[1])
        lengths = torch.stack([self.source.lengths, self.target.lengths])
        longer, shorter = lengths.amax(0), lengths.amin(0)
        long = ~empty & (longer > max_length)
        ratio = ~empty & ~long & (longer > max_ratio * shorter)
        kept = self.numbers[~(empty | long | ratio)]
        counts = [int(rule.sum()) for rule in (empty, long, ratio)]
        dropped = Dropped(len(self.texts), counts[0], counts[1], counts[2], max_length, max_ratio)
        return EncodedPairs(self.source, self.target, kept, self.texts), dropped

    def check_length(self, limit: int) -> None:
        """Refuse sentences that the model has no positions for.

        Raises:
            ValueError: naming the first.
        """
        longer = torch.maximum(self.source.lengths, self.target.lengths)
        if len(longer) and int(longer.max()) > limit:
            line = int(longer.argmax())
            raise ValueError(
                f"{self.texts.where}: pair {line + 1} has {int(longer[line])} tokens, the model "
                f"takes {limit}; evaluation leaves none out: split it, or train with a larger "
                "--data.max_length"
            )

    def __len__(self) -> int:
        return len(self.numbers)
