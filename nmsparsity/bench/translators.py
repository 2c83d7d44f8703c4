"""What a command line means by a translator: a trained one that translates greedily."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from nmsparsity.tasks.checkpoint import Checkpoint
    from nmsparsity.tasks.translation.translator import Translator

LOOP = (
    "a translator is a loop around its network, which only torch runs; benchmarks/translator.py of "
    "the project's source gives the other engines what is inside the loop"
)
ENGINES = ("torch",)


class Greedy(nn.Module):
    """Translates token numbers ``[rows, tokens]``; the scores ``[rows, steps, vocabulary]``."""

    def __init__(self, translator: Translator) -> None:
        super().__init__()
        self.model, self._its = translator.model, translator

    def forward(self, source: Tensor) -> Tensor:
        import torch

        its = self._its
        found = its.decoder.generate(
            self.model, its.vocabulary, source, output_logits=True, return_dict_in_generate=True
        )
        return torch.stack(found.logits, dim=1)


def trained_translator(checkpoint: Checkpoint) -> tuple[nn.Module, Callable[[int], Tensor]]:
    """The translator in eval mode, and batches of the sentences it is validated on, by size.

    Raises:
        ValueError: where these cannot be read.
    """
    from torch.nn.utils.rnn import pad_sequence

    from nmsparsity.tasks.translation.data import TranslationData
    from nmsparsity.tasks.translation.translator import translator_of

    translator = translator_of(checkpoint, beam=1)
    data = (checkpoint.config or {}).get("data") or {}
    try:
        pairs = TranslationData(**data, attached=checkpoint.attachments).evaluation
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{checkpoint.path}: the sentences to measure with are those of {data.get('source')!r},"
            f" which cannot be read here; set NMSPARSITY_DATA ({error})"
        ) from error

    def batch(size: int) -> Tensor:
        sentences = [pairs.source[number % len(pairs)] for number in range(size)]
        return pad_sequence(sentences, True, translator.vocabulary.pad)

    return Greedy(translator), batch


def is_translator(config: Mapping[str, Any]) -> bool:
    """Whether a file's configuration is that of a translator."""
    return config.get("kind") == "translation"
