"""Multi-head attention whose projections are layers of their own, so that they can be packed."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from nmsparsity.layers.plain import skeleton

_NAMES = ("q_proj", "k_proj", "v_proj")


class PackedMultiheadAttention(nn.Module):
    """`nn.MultiheadAttention` by four linear layers and one attention; for inference.

    `nn.MultiheadAttention` reads the weights of its projections itself and would never call a
    packed layer. Here ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj`` are called, each a
    `nn.Linear` at first. Same signature, same results, with no dropout.

    >>> plain = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    >>> x = torch.randn(1, 3, 8)
    >>> opened = PackedMultiheadAttention(plain)
    >>> torch.testing.assert_close(opened(x, x, x)[0], plain(x, x, x)[0])

    Raises:
        ValueError: for attention that `why_closed` gives a reason for.
    """

    # What nn.TransformerEncoderLayer looks at before it takes its fused path, which reads dense
    # weights: with these values it never does.
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, plain: nn.MultiheadAttention) -> None:
        super().__init__()
        reason = why_closed(plain)
        if reason is not None:
            raise ValueError(f"this attention cannot be packed: {reason}")
        self.__dict__["_plain"] = _bare(plain)
        self.embed_dim, self.num_heads = plain.embed_dim, plain.num_heads
        self.batch_first = plain.batch_first
        bias = plain.in_proj_bias
        biases = (None,) * 3 if bias is None else bias.detach().chunk(3)
        for name, weight, part in zip(_NAMES, _weights(plain), biases, strict=True):
            self.add_module(name, _linear(weight, part))
        out = plain.out_proj
        self.out_proj = _linear(out.weight.detach(), None if out.bias is None else out.bias)
        self.eval()

    def plain(self) -> nn.Module:
        """`nn.MultiheadAttention` again, with the same weights; its layers must be plain."""
        bare = self.__dict__["_plain"]
        module = skeleton(bare)
        layers = [self.get_submodule(name) for name in _NAMES]
        weights = [layer.weight.detach() for layer in layers]  # type: ignore[operator]
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        if bare._qkv_same_embed_dim:
            names, weights = ("in_proj_weight",), [torch.cat(weights)]  # type: ignore[assignment]
        for name, weight in zip(names, weights, strict=True):
            module._parameters[name] = nn.Parameter(weight, requires_grad=False)
        if layers[0].bias is not None:
            bias = torch.cat([layer.bias.detach() for layer in layers])  # type: ignore[operator, union-attr]
            module._parameters["in_proj_bias"] = nn.Parameter(bias, requires_grad=False)
        out = skeleton(bare.out_proj)
        out._parameters.update(self.out_proj._parameters)
        module._modules = {"out_proj": out.eval()}
        return module.eval()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The result and, where asked for, the attention weights, as `nn.MultiheadAttention`."""
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        q, k, v = (
            self._heads(getattr(self, n), x)
            for n, x in zip(_NAMES, (query, key, value), strict=True)
        )
        hinted = is_causal and key_padding_mask is None and not need_weights
        mask = None if hinted else self._mask(q, k, key_padding_mask, attn_mask)
        weights = None
        if need_weights:
            scores = (q * math.sqrt(1.0 / q.shape[-1])) @ k.transpose(-2, -1)
            weights = (scores if mask is None else scores + mask).softmax(dim=-1)
            heads = weights @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
        else:
            heads = functional.scaled_dot_product_attention(q, k, v, mask, is_causal=hinted)
        return self._leave(heads, weights, query.dim() == 3)

    def _heads(self, projection: nn.Module, x: Tensor) -> Tensor:
        """``[batch, heads, length, head size]`` of one input."""
        if x.is_nested:
            raise ValueError(
                "packed attention takes no nested tensors: give a padded tensor and "
                "key_padding_mask"
            )
        y: Tensor = projection(x)
        if y.dim() == 2:
            y = y.unsqueeze(0)
        elif not self.batch_first:
            y = y.transpose(0, 1)
        return y.reshape(*y.shape[:2], self.num_heads, -1).transpose(1, 2)

    def _leave(
        self, heads: Tensor, weights: Tensor | None, batched: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The heads side by side through the output projection, laid out as the input was."""
        joined = heads.transpose(1, 2).flatten(2)
        if not batched:
            return self.out_proj(joined.squeeze(0)), None if weights is None else weights.squeeze(0)
        joined = joined if self.batch_first else joined.transpose(0, 1)
        return self.out_proj(joined.contiguous()), weights

    def _mask(
        self, q: Tensor, k: Tensor, padding: Tensor | None, mask: Tensor | None
    ) -> Tensor | None:
        """Both masks as one that is added to the scores, ``[batch, heads, L, S]`` or wider."""
        batch, heads, length, source = q.shape[0], q.shape[1], q.shape[2], k.shape[2]
        if mask is not None:
            wanted = ((length, source), (batch * heads, length, source))
            if tuple(mask.shape) not in wanted:
                raise RuntimeError(f"The shape of attn_mask is {tuple(mask.shape)}, want {wanted}")
            mask = _additive(mask, q.dtype)
            mask = mask.reshape(batch, heads, length, source) if mask.dim() == 3 else mask
        if padding is None:
            return mask
        wide = _additive(padding, q.dtype).reshape(batch, 1, 1, source)
        return wide if mask is None else mask + wide


def why_closed(module: nn.MultiheadAttention) -> str | None:
    """Why this attention has to stay as it is; None when its projections can be layers."""
    if type(module).forward is not nn.MultiheadAttention.forward or "forward" in vars(module):
        return f"{type(module).__name__} has a forward of its own, which would not be run"
    if "parametrizations" in module._modules or "parametrizations" in module.out_proj._modules:
        return "its weight is computed from others (parametrization or weight norm)"
    if module.bias_k is not None or module.add_zero_attn:
        return "attention with bias_k, bias_v or add_zero_attn has no packed form"
    return None


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of bools, true for what is left out, as minus infinity; others as they are."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)


def _weights(plain: nn.MultiheadAttention) -> list[Tensor]:
    if plain._qkv_same_embed_dim:
        return [part.clone() for part in plain.in_proj_weight.detach().chunk(3)]
    return [getattr(plain, f"{name}_weight").detach() for name in _NAMES]


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer


def _bare(plain: nn.MultiheadAttention) -> nn.Module:
    bare = skeleton(plain)
    bare._modules = {"out_proj": skeleton(plain.out_proj)}
    return bare
