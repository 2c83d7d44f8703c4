"""TranslationData: pairs of sentences for Lightning, by name or folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

from lightning.pytorch import LightningDataModule

from nmsparsity.tasks.translation.encoded import Dropped, EncodedPairs
from nmsparsity.tasks.translation.pairs import Pairs, read_pairs
from nmsparsity.tasks.translation.token_batches import TokenBatches
from nmsparsity.tasks.translation.vocabulary import Vocabulary

VOCABULARY = "tokenizer.json"


class TranslationData(LightningDataModule):
    """Pairs of sentences, in batches of like length counted in tokens.

    Nothing is downloaded: a set that is not there is an error that says where to get it. Pairs
    that training leaves out are counted and reported; evaluation leaves none out.

    Args:
        source: a folder under the data root, or any path: text files ``<split>.<language>``, a
            sentence a line, or parquet files ``<split>-*`` with a column ``translation``. Else a
            set of the Hugging Face hub that is in the cache of `datasets`, as ``name`` or
            ``name:configuration``.
        root: the folder of data sets; default ``$NMSPARSITY_DATA``, else ``~/.cache/nmsparsity``.
        source_language: to translate from.
        target_language: to translate to.
        split: to evaluate on; ``test`` only when everything is chosen.
        vocabulary_size: subwords of both languages together, found in the training text.
        vocabulary_file: take this ``tokenizer.json`` instead.
        batch_tokens: of one batch over all processes: rows times tokens of the longest, padding
            included.
        max_length: tokens of a sentence, its end among them; longer ones are left out of training,
            and the model has so many positions.
        max_ratio: leave out of training what has one side so many times as long as the other.
        seed: of order and dropout.
        attached: the texts that a checkpoint brought along.
    """

    def __init__(
        self,
        source: str = "multi30k",
        root: str | None = None,
        source_language: str = "en",
        target_language: str = "de",
        split: str = "validation",
        vocabulary_size: int = 6000,
        vocabulary_file: str | None = None,
        batch_tokens: int = 2048,
        max_length: int = 128,
        max_ratio: float = 3.0,
        seed: int = 0,
        attached: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if not 2 <= max_length <= batch_tokens:
            raise ValueError(
                f"max_length {max_length}, batch_tokens {batch_tokens}: want 2 or more, and a "
                "batch that holds the longest sentence"
            )
        if max_ratio < 1:
            raise ValueError(f"max_ratio {max_ratio}: want 1 or more")
        self.source, self.root, self.split, self.seed = source, root, split, seed
        self.languages = [source_language, target_language]
        self.vocabulary_size, self.vocabulary_file = vocabulary_size, vocabulary_file
        self.batch_tokens, self.max_length, self.max_ratio = batch_tokens, max_length, max_ratio
        self._attached = dict(attached or {})

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """That of the checkpoint; else the given file; else a new one from the training text."""
        if VOCABULARY in self._attached:
            return Vocabulary(self._attached[VOCABULARY])
        if self.vocabulary_file is not None:
            return Vocabulary(Path(self.vocabulary_file).read_text(encoding="utf-8"))
        texts = self._training_texts
        lines: Iterable[str] = (line for side in (texts.sources, texts.targets) for line in side)
        return Vocabulary.train(lines, self.vocabulary_size)

    @cached_property
    def dropped(self) -> Dropped:
        """How many pairs training leaves out, and why."""
        return self._training[1]

    @cached_property
    def _training_texts(self) -> Pairs:
        return read_pairs(self.source, self.root, "train", self.languages)

    @cached_property
    def _training(self) -> tuple[EncodedPairs, Dropped]:
        pairs = EncodedPairs.encode(self._training_texts, self.vocabulary)
        kept, dropped = pairs.cleaned(self.max_length, self.max_ratio)
        if not len(kept):
            raise ValueError(f"{self.source}: nothing to train on: {dropped}")
        return kept, dropped

    @cached_property
    def evaluation(self) -> EncodedPairs:
        """All pairs of the split to evaluate on."""
        texts = read_pairs(self.source, self.root, self.split, self.languages)
        pairs = EncodedPairs.encode(texts, self.vocabulary)
        pairs.check_length(self.max_length)
        if not len(pairs):
            raise ValueError(f"{texts.where}: nothing to evaluate on")
        return pairs

    def setup(self, stage: str) -> None:
        """Say what is left out, and find now what is wrong with the evaluation."""
        if stage == "fit" and self.trainer is not None and self.trainer.is_global_zero:
            print(f"{self.source}: {self.dropped}; a vocabulary of {self.vocabulary.size:,}")
        assert len(self.evaluation)

    def train_dataloader(self) -> TokenBatches:
        accumulate = self.trainer.accumulate_grad_batches if self.trainer else 1
        return TokenBatches(
            self._training[0],
            self.batch_tokens,
            self.vocabulary.pad,
            train=True,
            accumulate=accumulate,
            seed=self.seed,
        )

    def val_dataloader(self) -> TokenBatches:
        return TokenBatches(self.evaluation, self.batch_tokens, self.vocabulary.pad, train=False)
