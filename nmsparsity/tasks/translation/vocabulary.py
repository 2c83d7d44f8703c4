"""Vocabulary: sentences as subword numbers and back; one for both languages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

PAD, END = "<pad>", "</s>"


class Vocabulary:
    """A subword vocabulary of the `tokenizers` library.

    Args:
        text: what `Vocabulary.text` gave, or the content of any ``tokenizer.json`` that has the
            tokens ``<pad>`` and ``</s>``.

    Raises:
        ValueError: if it is no such text.

    >>> small = Vocabulary.train(["ein Haus", "a house"] * 9, 280)
    >>> small.decode(small.encode(["ein Haus </s> für 2 €"])[0])
    'ein Haus </s> für 2 €'
    """

    def __init__(self, text: str) -> None:
        try:
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # The library raises no narrower one.
            raise ValueError(f"vocabulary: no tokenizer.json ({error})") from None
        # A sentence about "</s>" does not end there.
        self._tokenizer.encode_special_tokens = True
        self.pad, self.end = self._number(PAD), self._number(END)

    @classmethod
    def train(cls, lines: Iterable[str], size: int) -> Vocabulary:
        """Byte-pair encoding (arXiv 1508.07909) over bytes: every text has a spelling.

        The same lines give the same vocabulary. Texts are brought to Unicode's NFC first.

        Raises:
            ValueError: if size is too small for the 256 bytes and two special tokens.
        """
        if size < 258:
            raise ValueError(f"vocabulary of {size}: want 258 or more, bytes take 256")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[PAD, END],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(lines, trainer)
        return cls(tokenizer.to_str())

    def _number(self, token: str) -> int:
        number: int | None = self._tokenizer.token_to_id(token)
        if number is None:
            raise ValueError(f"vocabulary: it has no token {token}")
        return number

    @property
    def text(self) -> str:
        """All of it, as JSON."""
        written: str = self._tokenizer.to_str()
        return written

    def same(self, other: Vocabulary) -> bool:
        """Whether both give every token the same number."""
        mine: dict[str, int] = self._tokenizer.get_vocab()
        theirs: dict[str, int] = other._tokenizer.get_vocab()
        return mine == theirs

    @property
    def size(self) -> int:
        """How many tokens it has."""
        count: int = self._tokenizer.get_vocab_size()
        return count

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """The token numbers of each line, with ``</s>`` at its end."""
        found = self._tokenizer.encode_batch(list(lines), add_special_tokens=False)
        return [[*encoding.ids, self.end] for encoding in found]

    def decode(self, numbers: Sequence[int]) -> str:
        """The text up to the first ``</s>``."""
        ids = list(numbers)
        if self.end in ids:
            ids = ids[: ids.index(self.end)]
        text: str = self._tokenizer.decode([number for number in ids if number != self.pad])
        return text.strip()
