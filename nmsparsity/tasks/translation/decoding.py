"""Decoding: from source tokens to translations, greedily or by beam search, with a cache."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from nmsparsity.tasks.translation.vocabulary import Vocabulary


@dataclass(frozen=True)
class Decoder:
    """How a model's translations are looked for.

    Args:
        beam: hypotheses kept at a time; 1 takes the likeliest token each time.
        length_penalty: hypotheses are compared by their log-probability over their length to this
            power; 0 favours short ones.
        limit: tokens of the longest translation.

    Raises:
        ValueError: for less than 1 hypothesis.
    """

    beam: int
    length_penalty: float
    limit: int

    def __post_init__(self) -> None:
        if self.beam < 1:
            raise ValueError(f"beam {self.beam}: want 1 or more")
        if not math.isfinite(self.length_penalty):
            raise ValueError(f"length_penalty {self.length_penalty}: want a finite number")

    @torch.inference_mode()
    def __call__(
        self, model: nn.Module, vocabulary: Vocabulary, source: Tensor
    ) -> list[Translation]:
        """Translate sentences ``[rows, tokens]``, padded, by a model in eval mode.

        Keys and values of earlier tokens are kept, not computed again. A translation that is twice
        as long as the longest source and 10 tokens more is stopped, and says so.
        """
        rows = self.generate(model, vocabulary, source)
        # The first token is the start, in some models the same as the end.
        ids = [row[1:] for row in rows.tolist()]
        return [Translation(vocabulary.decode(row), vocabulary.end in row, len(row)) for row in ids]

    def generate(
        self, model: nn.Module, vocabulary: Vocabulary, source: Tensor, **more: Any
    ) -> Any:
        """What transformers' ``generate`` gives: token numbers; ``more`` is for its settings."""
        made, settings = cast(Any, model), cast(Any, GenerationConfig)
        config = settings(
            max_new_tokens=min(self.limit, 2 * source.shape[1] + 10),
            num_beams=self.beam,
            # Without a beam there is nothing to compare, and transformers complains.
            **({"length_penalty": self.length_penalty} if self.beam > 1 else {}),
            do_sample=False,
            use_cache=True,
            pad_token_id=vocabulary.pad,
            eos_token_id=vocabulary.end,
            decoder_start_token_id=made.config.decoder_start_token_id,
            suppress_tokens=[vocabulary.pad],
            **more,
        )
        mask = source.ne(vocabulary.pad).long()
        return made.generate(input_ids=source, attention_mask=mask, generation_config=config)


@dataclass(frozen=True)
class Translation:
    """A text; whether the model ended it itself; tokens computed for it, padding included."""

    text: str
    complete: bool
    tokens: int
