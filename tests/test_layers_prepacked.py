"""PrepackedLinear computes what the plain layer does, and follows its weight."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nmsparsity.layers.prepacked import PrepackedLinear, orders

SHAPES = [(3, 5), (1, 1, 5), (2, 3, 4, 5), (5,), (0, 5)]


def pair(order: str, bias: bool = True) -> tuple[nn.Linear, PrepackedLinear]:
    torch.manual_seed(0)
    plain = nn.Linear(5, 7, bias=bias).eval().requires_grad_(False)
    return plain, PrepackedLinear(plain, order)


@pytest.mark.parametrize("order", orders())
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_computes_what_the_plain_layer_does(order: str, bias: bool, shape: tuple) -> None:
    plain, layer = pair(order, bias)
    x = torch.randn(shape)
    assert_close(layer(x), plain(x))
    strided = torch.randn(*shape[:-1], 10)[..., ::2]
    assert_close(layer(strided), plain(strided))


def test_both_orders_are_here() -> None:
    assert orders() == ["transposed", "onednn"]


@pytest.mark.parametrize("order", orders())
def test_the_copy_follows_the_weight(order: str) -> None:
    plain, layer = pair(order)
    x = torch.randn(3, 5)
    before = layer(x)
    assert layer.weight is plain.weight
    with torch.no_grad():
        plain.weight.mul_(2.0)
    assert_close(layer(x), plain(x))
    assert not torch.equal(layer(x), before)
    layer.load_state_dict({name: value + 1 for name, value in plain.state_dict().items()})
    assert_close(layer(x), plain(x))
    plain.weight = nn.Parameter(torch.zeros(7, 5))
    assert_close(layer(x), x @ layer.weight.t() + layer.bias)


@pytest.mark.parametrize("order", orders())
def test_copies_pickles_and_plain_again(order: str) -> None:
    plain, layer = pair(order)
    plain.tag = "mine"
    layer = PrepackedLinear(plain, order)
    x = torch.randn(3, 5)
    layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other._copy is None
        assert torch.equal(other(x), layer(x))
    assert layer.state_dict().keys() == plain.state_dict().keys()
    again = layer.plain()
    assert type(again) is nn.Linear
    assert again.weight is plain.weight
    assert again.tag == layer.tag == "mine"
    assert {*vars(again)} == {*vars(plain)}
    assert not again.training


@pytest.mark.parametrize("order", orders())
def test_what_is_not_fp32_inference_goes_the_plain_way(order: str) -> None:
    plain, layer = pair(order)
    x = torch.randn(3, 5, requires_grad=True)
    layer(x).sum().backward()
    assert_close(x.grad, plain.weight.sum(0).expand(3, 5))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype is torch.bfloat16
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        layer(torch.randn(3, 4))
    with pytest.raises(RuntimeError, match="same dtype"):
        layer(torch.randn(3, 5, dtype=torch.float64))
    exported = torch.export.export(layer, (torch.randn(3, 5),)).module()
    assert_close(exported(x), plain(x))
    assert layer.double()(x.double()).dtype is torch.float64
    with torch.inference_mode():
        made = PrepackedLinear(nn.Linear(5, 7), order)
        assert_close(made(x), nn.functional.linear(x, made.weight, made.bias))


def test_hooks_are_kept() -> None:
    plain, _ = pair("transposed")
    seen: list[int] = []
    plain.register_forward_hook(lambda *_: seen.append(1))
    PrepackedLinear(plain, "transposed")(torch.randn(2, 5))
    assert seen == [1]
