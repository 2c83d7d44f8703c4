"""Attention by packed layers gives what nn.MultiheadAttention gives."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import nmsparsity as nm
from nmsparsity.layers import PackedMultiheadAttention
from nmsparsity.layers.packed import PackedLayer

LENGTH, SOURCE, BATCH, WIDTH = 4, 6, 3, 16
CAUSAL = nn.Transformer.generate_square_subsequent_mask(LENGTH)
MASKS: dict[str, Tensor | None] = {
    "none": None,
    "bool": torch.rand(LENGTH, SOURCE, generator=torch.Generator().manual_seed(1)) < 0.4,
    "float": torch.randn(LENGTH, SOURCE, generator=torch.Generator().manual_seed(2)),
    "a head each": torch.randn(
        2 * BATCH, LENGTH, SOURCE, generator=torch.Generator().manual_seed(3)
    ),
}
PADDING = torch.tensor([[False] * 4 + [True] * 2, [False] * 6, [False] * 5 + [True]])


def attention(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(WIDTH, 2, dropout=0.3, **options).eval()
    if plain.in_proj_bias is not None:
        nn.init.normal_(plain.in_proj_bias)
        nn.init.normal_(plain.out_proj.bias)
    return plain


def inputs(batch_first: bool, kdim: int = WIDTH, vdim: int = WIDTH) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    shapes = ((LENGTH, BATCH, WIDTH), (SOURCE, BATCH, kdim), (SOURCE, BATCH, vdim))
    made = [torch.randn(shape) for shape in shapes]
    return tuple(x.transpose(0, 1) if batch_first else x for x in made)


@torch.no_grad()
def check(plain: nn.MultiheadAttention, given: tuple[Tensor, ...], **options: Any) -> None:
    nm.prune(plain, "2:4", include="*")
    packed = nm.compress(plain, backend="reference")
    assert isinstance(packed, PackedMultiheadAttention)
    assert sum(isinstance(module, PackedLayer) for module in packed.modules()) == 4
    expected, weights = plain(*given, **options)
    for found in (packed, nm.decompress(packed), copy.deepcopy(packed)):
        got, its = found(*given, **options)
        assert got.shape == expected.shape
        assert_close(got, expected, rtol=1e-4, atol=1e-5)
        assert (its is None) == (weights is None)
        if weights is not None:
            assert_close(its, weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize(
    ("mask", "padding"),
    [
        *((mask, None) for mask in MASKS),
        *((mask, PADDING) for mask in ("none", "bool")),
        *((mask, PADDING * -1e4) for mask in ("none", "float", "a head each")),
    ],
)
def test_masks(batch_first: bool, need_weights: bool, mask: str, padding: Tensor | None) -> None:
    plain = attention(batch_first=batch_first)
    options = {"need_weights": need_weights, "attn_mask": MASKS[mask]}
    check(plain, inputs(batch_first), key_padding_mask=padding, **options)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_self_attention_and_its_fast_path(need_weights: bool, batch_first: bool) -> None:
    x = inputs(batch_first)[0]
    check(attention(batch_first=batch_first), (x, x, x), need_weights=need_weights)


@pytest.mark.parametrize("need_weights", [False, True])
def test_the_causal_hint(need_weights: bool) -> None:
    x = inputs(False)[0]
    options = {"attn_mask": CAUSAL, "is_causal": True, "need_weights": need_weights}
    check(attention(), (x, x, x), **options)
    with pytest.raises(RuntimeError, match="Need attn_mask"):
        PackedMultiheadAttention(attention())(x, x, x, is_causal=True)


def test_weights_by_head() -> None:
    check(attention(), inputs(False), average_attn_weights=False)


def test_other_widths_and_no_bias() -> None:
    check(attention(kdim=8, vdim=12), inputs(False, 8, 12))
    check(attention(bias=False, batch_first=True), inputs(True))


@pytest.mark.parametrize("need_weights", [False, True])
def test_without_a_batch(need_weights: bool) -> None:
    query, key, value = (x[:, 0] for x in inputs(False))
    options = {"need_weights": need_weights, "attn_mask": MASKS["float"]}
    check(attention(batch_first=True), (query, key, value), **options)


def test_a_mask_of_another_shape_is_refused() -> None:
    opened = PackedMultiheadAttention(attention())
    with pytest.raises(RuntimeError, match="The shape of attn_mask"):
        opened(*inputs(False), attn_mask=torch.zeros(2, 2))


def test_nested_tensors_are_refused_in_words() -> None:
    opened = PackedMultiheadAttention(attention(batch_first=True))
    nested = torch.nested.nested_tensor([torch.ones(2, WIDTH)], layout=torch.jagged)
    with pytest.raises(ValueError, match="packed attention takes no nested tensors"):
        opened(nested, nested, nested)


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_what_cannot_be_opened_says_why(options: dict[str, bool]) -> None:
    with pytest.raises(ValueError, match="bias_k, bias_v or add_zero_attn has no packed form"):
        PackedMultiheadAttention(attention(**options))


def test_attention_without_a_packed_layer_stays_what_it_was() -> None:
    model = nn.Sequential(attention(), nn.Linear(16, 16))
    nm.prune(model, "2:4", include="1")
    assert type(nm.compress(model, backend="reference")[0]) is nn.MultiheadAttention


@torch.no_grad()
def test_only_the_output_projection_is_packed() -> None:
    plain = attention()
    nm.prune(plain, "2:4", include="out_proj")
    packed: Any = nm.compress(plain, backend="reference")
    assert isinstance(packed.out_proj, PackedLayer)
    assert type(packed.q_proj) is nn.Linear
    assert_close(packed(*inputs(False))[0], plain(*inputs(False))[0], rtol=1e-4, atol=1e-5)
    state = nm.decompress(packed).state_dict()
    for name, tensor in plain.state_dict().items():
        assert_close(state[name], tensor, rtol=0, atol=0)


@torch.no_grad()
def test_compiled() -> None:
    plain = attention(batch_first=True)
    nm.prune(plain, "2:4", include="*")
    packed = nm.compress(plain, backend="reference")
    x = inputs(True)[0]
    compiled = torch.compile(packed, fullgraph=True, backend="eager")
    assert_close(compiled(x, x, x)[0], plain(x, x, x)[0], rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
