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


@pytest.mark.parametrize("order", orders())
def test_memory_that_is_used_again_is_another_weight(order: str) -> None:
    _, layer = pair(order, bias=False)
    x = torch.randn(3, 5)
    for value in range(8):
        layer.weight = None
        layer.weight = nn.Parameter(torch.full((7, 5), float(value)), requires_grad=False)
        assert_close(layer(x), x @ layer.weight.t())
        given = {"weight": torch.full((7, 5), -float(value))}
        assert_close(torch.func.functional_call(layer, given, (x,)), x @ given["weight"].t())
    layer.weight.data = torch.ones(7, 5)
    assert_close(layer(x), x @ layer.weight.t())
    fine = layer.weight.data.uniform_().clone()
    assert_close(layer.bfloat16().float()(x), x @ fine.bfloat16().float().t())


@pytest.mark.parametrize("order", orders())
def test_weights_whose_changes_torch_does_not_count(order: str) -> None:
    with torch.inference_mode():
        layer = PrepackedLinear(nn.Linear(5, 7), order)
        layer(torch.ones(1, 5))
        layer.load_state_dict({"weight": torch.zeros(7, 5), "bias": torch.zeros(7)})
        assert torch.equal(layer(torch.ones(1, 5)), torch.zeros(1, 7))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # torch's own
@pytest.mark.parametrize("order", orders())
def test_derivatives_of_every_kind(order: str) -> None:
    plain, layer = pair(order)
    x, tangent = torch.randn(3, 5), torch.randn(3, 5)
    wanted = torch.func.jvp(plain, (x,), (tangent,))
    assert_close(torch.func.jvp(layer, (x,), (tangent,)), wanted)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        found = torch.autograd.forward_ad.unpack_dual(layer(dual)).tangent
    assert_close(found, wanted[1])
    assert_close(torch.func.vmap(layer)(x), plain(x))
    weights = {"weight": torch.randn(2, 7, 5), "bias": torch.randn(2, 7)}
    one = torch.func.vmap(lambda w, x: torch.func.functional_call(layer, w, (x,)), (0, None))
    assert one(weights, x).shape == (2, 3, 7)


def test_sizes_are_those_of_the_weight() -> None:
    _, layer = pair("transposed", bias=False)
    layer.weight = nn.Parameter(torch.ones(9, 5), requires_grad=False)
    assert layer(torch.ones(2, 5)).shape == (2, 9), "transformers resizes tied weights like this"


def test_it_can_be_parametrized_and_compiled_and_pickled() -> None:
    plain, layer = pair("transposed")
    layer.compile()
    assert torch.equal(pickle.loads(pickle.dumps(layer)).weight, plain.weight)
    _, layer = pair("transposed")
    nn.utils.parametrizations.weight_norm(layer)
    assert_close(layer(torch.eye(5)), plain(torch.eye(5)))
