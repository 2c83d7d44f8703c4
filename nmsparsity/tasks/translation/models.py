"""Encoder-decoder Transformers of the transformers library: new, saved or described ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, GenerationConfig, MarianConfig
from transformers.activations import ACT2FN

from nmsparsity.tasks.translation.pairs import read_utf8
from nmsparsity.tasks.translation.vocabulary import Vocabulary


@dataclass(frozen=True)
class Transformer:
    """The Transformer of arXiv 1706.03762: norms after the sums, positions as sines.

    The defaults are Transformer-base. Embeddings of both sides and the output layer are one tied
    matrix.

    Args:
        width: of the vectors between layers.
        feed_forward: of those inside a layer.
        encoder_layers: how many,
        decoder_layers: likewise.
        heads: of attention.
        dropout: on every sum and on the embeddings.
        attention_dropout: on the attention's weights.
        activation: between the two feed-forward layers.
    """

    width: int = 512
    feed_forward: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    heads: int = 8
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation: str = "relu"

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("width", "feed_forward", "heads")}
        layers = {name: getattr(self, name) for name in ("encoder_layers", "decoder_layers")}
        if min(sizes.values()) < 1 or min(layers.values()) < 0:
            raise ValueError(f"transformer {sizes | layers}: want sizes of 1 or more")
        if self.activation not in ACT2FN:
            raise ValueError(f"activation {self.activation!r}: want one of {', '.join(ACT2FN)}")

    def config(self, vocabulary: Vocabulary, positions: int) -> MarianConfig:
        """The configuration of transformers' Marian, which is this architecture.

        Raises:
            ValueError: if the heads do not divide the width.
        """
        if self.width % self.heads:
            raise ValueError(f"width {self.width}: want a multiple of the {self.heads} heads")
        return MarianConfig(
            vocab_size=vocabulary.size,
            max_position_embeddings=positions,
            d_model=self.width,
            encoder_layers=self.encoder_layers,
            decoder_layers=self.decoder_layers,
            encoder_attention_heads=self.heads,
            decoder_attention_heads=self.heads,
            encoder_ffn_dim=self.feed_forward,
            decoder_ffn_dim=self.feed_forward,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            activation_function=self.activation,
            scale_embedding=True,
            pad_token_id=vocabulary.pad,
            eos_token_id=vocabulary.end,
            decoder_start_token_id=vocabulary.pad,
            forced_eos_token_id=None,
        )


def new(shape: Transformer, vocabulary: Vocabulary, positions: int) -> nn.Module:
    """A new Transformer with random weights: Xavier's, embeddings of length about 1."""
    model = _from_config(shape.config(vocabulary, positions))
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.out_features != vocabulary.size:
            nn.init.xavier_uniform_(module.weight)
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    nn.init.normal_(embedding.weight, std=shape.width**-0.5)
    nn.init.zeros_(embedding.weight[vocabulary.pad].detach())
    return model


def pretrained(folder: str, vocabulary: Vocabulary, positions: int) -> nn.Module:
    """Any encoder-decoder that transformers has saved in a folder on this computer, in fp32.

    Raises:
        FileNotFoundError: if there is no such folder; nothing is downloaded.
        ValueError: if it has another vocabulary, or fewer positions.
    """
    if not Path(folder, "config.json").is_file():
        raise FileNotFoundError(f"{folder}: no folder with a config.json; want a saved model")
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder, local_files_only=True)
    own = Path(folder, "tokenizer.json")
    _check_vocabulary(folder, getattr(model.config, "vocab_size", None), own, vocabulary)
    if positions_of(model, positions) < positions:
        raise ValueError(
            f"{folder}: it takes {positions_of(model, positions)} tokens; give --data.max_length "
            f"{positions_of(model, positions)} instead of {positions}"
        )
    return _plain(model.train())


def _check_vocabulary(folder: str, rows: int | None, own: Path, given: Vocabulary) -> None:
    """Models may have more rows than there are tokens: T5 has 32,128 for some 32,100."""
    if rows is None:
        raise ValueError(f"{folder}: its configuration has no vocab_size, nothing to compare with")
    fits = Vocabulary(read_utf8(own)).same(given) if own.is_file() else rows == given.size
    if not fits or rows < given.size:
        where = str(own) if own.is_file() else "FILE, a tokenizer.json: there is none in the folder"
        raise ValueError(
            f"{folder}: another vocabulary, of {rows:,} tokens, than that of the data, of "
            f"{given.size:,}; give the model's own by --data.vocabulary_file {where}"
        )


def described(text: str) -> nn.Module:
    """A model from what `describe` said about it, with random weights.

    Raises:
        ValueError: if this transformers knows no such model.
    """
    try:
        said = json.loads(text)
        config = AutoConfig.for_model(said.pop("model_type"), **said)
        return _from_config(config)
    except Exception as error:  # Whatever a model's own code raises at numbers that make no sense.
        raise ValueError(f"model.json: no description of an encoder-decoder ({error})") from error


def _from_config(config: Any) -> nn.Module:
    build: Any = AutoModelForSeq2SeqLM.from_config
    return _plain(build(config))


def _plain(model: Any) -> nn.Module:
    """In fp32, whatever it was saved in, and decoding as `Decoder` says, not as a file says.

    A checkpoint does not hold such settings: they would act until the first interruption only.
    """
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    found: nn.Module = model.float()
    model.config.dtype = torch.float32
    return found


def describe(model: nn.Module) -> str:
    """All of a model but its weights, as JSON."""
    said: str = model.config.to_json_string(use_diff=False)  # type: ignore[operator, union-attr]
    return said


def start_of(model: nn.Module) -> int:
    """The number of the token that the decoder starts from.

    Raises:
        ValueError: if the model's configuration does not say.
    """
    found: Any = getattr(model.config, "decoder_start_token_id", None)
    if not isinstance(found, int):
        raise ValueError(
            f"the model's configuration has decoder_start_token_id {found!r}: want the number of a "
            "token, in the config.json of its folder"
        )
    return found


def positions_of(model: nn.Module, otherwise: int) -> int:
    """How many tokens a model takes; ``otherwise`` where it has no limit of its own."""
    found = getattr(model.config, "max_position_embeddings", None)
    return otherwise if found is None else min(int(found), otherwise)
