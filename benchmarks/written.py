"""Marian's Transformer written out as two graphs: of a sentence, and of one more token.

Every engine gets the same graphs, with the layers of the given model in them; without the code
around them that transformers runs in Python for every token.
"""

from __future__ import annotations

from typing import Any

import torch
from stepping import Step
from torch import Tensor, nn
from torch.nn import functional


class Attend(nn.Module):
    """Attention, all heads at once: of ``[rows, n, width]`` on what is split already."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def split(self, x: Tensor) -> Tensor:
        """``[rows, heads, n, width / heads]``."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        seen = functional.scaled_dot_product_attention(self.split(x), keys, values, mask)
        return seen.transpose(1, 2).flatten(2)


class Recall(Attend):
    """Attention to all that came before."""

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:  # type: ignore[override]
        seen = functional.scaled_dot_product_attention(self.split(x), keys, values)
        return seen.transpose(1, 2).flatten(2)


class FeedForward(nn.Module):
    """Two layers, their sum with what came in, and its norm."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.up, self.act, self.down = layer.fc1, nn.ReLU(), layer.fc2
        self.norm = layer.final_layer_norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.down(self.act(self.up(x))))


class EncoderBlock(nn.Module):
    """A layer of the encoder."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        its = layer.self_attn
        self.q, self.k, self.v, self.out = its.q_proj, its.k_proj, its.v_proj, its.out_proj
        self.attend, self.norm = Attend(its.num_heads), layer.self_attn_layer_norm
        self.rest = FeedForward(layer)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        keys, values = self.attend.split(self.k(x)), self.attend.split(self.v(x))
        return self.rest(self.norm(x + self.out(self.attend(self.q(x), keys, values, mask))))


class Encode(nn.Module):
    """Token numbers ``[rows, tokens]`` to what every step reads: a mask, keys and values."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        encoder = model.model.encoder
        self.words, self.places = encoder.embed_tokens, encoder.embed_positions
        self.scale, self.pad = encoder.embed_scale, model.config.pad_token_id
        self.blocks = nn.ModuleList(EncoderBlock(layer) for layer in encoder.layers)
        cross = [layer.encoder_attn for layer in model.model.decoder.layers]
        self.keys = nn.ModuleList(its.k_proj for its in cross)
        self.values = nn.ModuleList(its.v_proj for its in cross)
        self.attend = Attend(cross[0].num_heads)

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        mask = torch.where(ids == self.pad, -1e9, 0.0)[:, None, None, :]
        places = functional.embedding(torch.arange(ids.shape[1]), self.places.weight)
        x = self.words(ids) * self.scale + places
        for block in self.blocks:
            x = block(x, mask)
        found = [mask]
        for keys, values in zip(self.keys, self.values, strict=True):
            found += [self.attend.split(keys(x)), self.attend.split(values(x))]
        return tuple(found)


class DecoderBlock(nn.Module):
    """A layer of the decoder, for one token; ``keys`` and ``values`` of those before it."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        its, cross = layer.self_attn, layer.encoder_attn
        self.q, self.k, self.v, self.out = its.q_proj, its.k_proj, its.v_proj, its.out_proj
        self.recall, self.norm = Recall(its.num_heads), layer.self_attn_layer_norm
        self.cross_q, self.cross_out = cross.q_proj, cross.out_proj
        self.attend, self.cross_norm = Attend(cross.num_heads), layer.encoder_attn_layer_norm
        self.rest = FeedForward(layer)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        cross_keys: Tensor,
        cross_values: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        keys = torch.cat([keys, self.recall.split(self.k(x))], dim=2)
        values = torch.cat([values, self.recall.split(self.v(x))], dim=2)
        x = self.norm(x + self.out(self.recall(self.q(x), keys, values)))
        seen = self.attend(self.cross_q(x), cross_keys, cross_values, mask)
        return self.rest(self.cross_norm(x + self.cross_out(seen))), keys, values


class NextToken(nn.Module):
    """A token, its place, what `Encode` gave, keys and values so far: scores, and these grown."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        decoder = model.model.decoder
        self.words, self.places = decoder.embed_tokens, decoder.embed_positions
        self.scale, self.head = decoder.embed_scale, model.lm_head
        self.blocks = nn.ModuleList(DecoderBlock(layer) for layer in decoder.layers)
        allowed = model.final_logits_bias.detach().clone()
        allowed[:, model.config.pad_token_id] = -1e9
        self.register_buffer("allowed", allowed)

    def forward(self, token: Tensor, place: Tensor, mask: Tensor, *kept: Tensor) -> tuple[Any, ...]:
        count = 2 * len(self.blocks)
        cross, past, present = kept[:count], kept[count:], []
        places = functional.embedding(place, self.places.weight)
        x = self.words(token) * self.scale + places
        for number, block in enumerate(self.blocks):
            pair = slice(2 * number, 2 * number + 2)
            x, keys, values = block(x, mask, *cross[pair], *past[pair])
            present += [keys, values]
        return self.head(x) + self.allowed, *present


class Written(nn.Module):
    """Both graphs of a Marian model, with its own layers."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encode, self.next_token = Encode(model), NextToken(model)
        its, config = self.next_token.blocks[0].recall.heads, model.config
        self.empty = (its, 0, config.d_model // its)
        self.start, self.end = config.decoder_start_token_id, config.eos_token_id

    def past(self, rows: int, length: int = 0) -> list[Tensor]:
        """Keys and values before the first token."""
        shape = (rows, self.empty[0], length, self.empty[2])
        return [torch.zeros(shape) for _ in range(2 * len(self.next_token.blocks))]

    @torch.no_grad()
    def greedy(self, ids: Tensor, steps: int, encode: Step, next_token: Step) -> Tensor:
        """The likeliest token each time, ``[rows, steps]``; the end is a token like others."""
        kept, past = encode([ids]), self.past(len(ids))
        token, found = torch.full((len(ids), 1), self.start), []
        for place in range(steps):
            scores, *past = next_token([token, torch.tensor([[place]]), *kept, *past])
            token = torch.as_tensor(scores)[:, -1:].argmax(-1)
            found.append(token)
        return torch.cat(found, dim=1)
