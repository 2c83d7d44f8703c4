"""Scores: BLEU, chrF and loss over all sentences, each counted once, whatever its process."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional

from nmsparsity.tasks.translation.pairs import Pairs


def bleu_and_chrf(translations: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """sacrebleu's BLEU (arXiv 1804.08771) and chrF2, 0 to 100, each with its signature.

    >>> bleu_and_chrf(["das Haus ist klein ."], ["das Haus ist klein ."])["bleu"]
    100.0
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    found: dict[str, Any] = {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        # 100.00000000000004 is 100.
        found[name] = round(metric.corpus_score(list(translations), [list(references)]).score, 6)
        found[f"{name}_signature"] = str(metric.get_signature())
    return found


class Scores:
    """Collects losses and translations of one evaluation.

    Sums are over tokens, and over all processes before anything is divided.
    """

    def __init__(self, pad: int) -> None:
        self.pad = pad
        self._sums = torch.zeros(2, dtype=torch.float64)
        self._texts: dict[int, str] = {}

    def add_loss(self, scores: Tensor, target: Tensor) -> None:
        """Count a batch: scores ``[rows, tokens, vocabulary]``, target ``[rows, tokens]``."""
        loss = functional.cross_entropy(
            scores.float().flatten(0, 1), target.flatten(), ignore_index=self.pad, reduction="sum"
        )
        self._sums[0] += float(loss.detach())
        self._sums[1] += int(target.ne(self.pad).sum())

    def add_texts(self, numbers: Tensor, texts: Sequence[str]) -> None:
        """Count translations by the number of their pair; -1 stands for none."""
        for number, text in zip(numbers.tolist(), texts, strict=True):
            if number >= 0:
                self._texts[number] = text

    def compute(
        self, pairs: Pairs, add_up: Callable[[Tensor], Tensor], whole: bool = True
    ) -> dict[str, Any]:
        """All metrics; every process has to call this.

        Args:
            pairs: of the whole split.
            add_up: sums a tensor over all processes.
            whole: whether all of them should have come; else those that did are scored.

        Raises:
            RuntimeError: if not every sentence came exactly once.
        """
        self._texts = gathered(self._texts)
        if whole and sorted(self._texts) != list(range(len(pairs))):
            raise RuntimeError(f"{len(self._texts)} translations of {len(pairs)} sentences")
        loss, tokens = (float(total) for total in add_up(self._sums))
        return {
            **bleu_and_chrf(self.translations, self._seen(pairs.targets)),
            "loss": loss / tokens,
            "perplexity": math.exp(min(loss / tokens, 700.0)),
            "sentences": len(self._texts),
            "tokens": int(tokens),
        }

    @property
    def translations(self) -> list[str]:
        """In the order of the split."""
        return [self._texts[number] for number in sorted(self._texts)]

    def _seen(self, lines: Sequence[str]) -> list[str]:
        return [lines[number] for number in sorted(self._texts)]

    def write(self, path: Path, pairs: Pairs) -> None:
        """Source, reference and translation of every sentence as tab-separated values."""
        beside = path.with_suffix(".tmp")
        with beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(["source", "reference", "translation"])
            columns = (self._seen(pairs.sources), self._seen(pairs.targets), self.translations)
            writer.writerows(zip(*columns, strict=True))
        os.replace(beside, path)


def gathered(texts: dict[int, str]) -> dict[int, str]:
    """Those of all processes.

    Raises:
        RuntimeError: if two processes have the same one.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return texts
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, texts)
    together = {number: text for part in parts for number, text in part.items()}
    if len(together) != sum(map(len, parts)):
        raise RuntimeError("a sentence was translated by two processes")
    return together
