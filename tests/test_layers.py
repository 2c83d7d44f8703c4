"""Packed layers: what they compute, save, load, copy, compile and export."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

import nmsparsity as nm
from nmsparsity.kernels import KERNELS
from nmsparsity.layers import PackedConv2d, PackedLayer, PackedLinear, pack, why_not
from nmsparsity.pattern import Pattern
from nmsparsity.sites import sites


def sparse(layer: nn.Module, pattern: Pattern = Pattern(2, 4)) -> nn.Module:  # noqa: B008
    """The layer with its weight masked."""
    with torch.no_grad():
        for site in sites(layer):
            weight = site.parameter
            weight.mul_(pattern.mask(weight.abs(), site.layout))
    return layer


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7)).to(dtype)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(16, 8), (2, 3, 16)),
    "linear, one row": (lambda: nn.Linear(16, 8), (16,)),
    "linear, no bias, a short group": (lambda: nn.Linear(14, 8, bias=False), (5, 14)),
    "Conv1D": (lambda: Conv1D(8, 16), (2, 3, 16)),
    "conv1d": (lambda: nn.Conv1d(8, 6, 3, stride=2, padding=1, dilation=2), (2, 8, 11)),
    "conv1d, same, one": (lambda: nn.Conv1d(8, 8, 3, padding="same"), (8, 11)),
    "conv2d": (lambda: nn.Conv2d(8, 4, 3, padding=1), (2, 8, 5, 6)),
    "conv2d, groups": (lambda: nn.Conv2d(8, 4, (3, 2), groups=2, bias=False), (2, 8, 5, 6)),
    "conv2d, odd ones": (
        lambda: nn.Conv2d(8, 4, 3, stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
        (2, 8, 7, 6),
    ),
    "conv2d, same": (lambda: nn.Conv2d(8, 4, (3, 5), padding="same"), (2, 8, 5, 6)),
    "conv2d, valid, one": (lambda: nn.Conv2d(8, 4, 3, padding="valid"), (8, 5, 6)),
}
APPLY: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
}


def made(kind: str) -> tuple[nn.Module, PackedLayer, Tensor]:
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    plain = sparse(make()).eval()
    return plain, pack(plain, Pattern(2, 4), "layer"), randn(*shape)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("activation", APPLY)
def test_the_result_of_the_plain_layer(kind: str, activation: str) -> None:
    plain, packed, x = made(kind)
    expected, then = plain(x), APPLY[activation]
    residual = randn(*expected.shape)
    assert_close(packed(x), expected)
    assert_close(packed(x, None, activation), then(expected))
    for summand in (residual, 2.0, residual.double(), residual[..., :1]):
        assert_close(packed(x, summand, activation), then(expected + summand))


@pytest.mark.parametrize("kind", LAYERS)
def test_back_to_the_plain_layer(kind: str) -> None:
    plain, packed, x = made(kind)
    again = packed.plain()
    assert type(again) is type(plain)
    assert repr(again) == repr(plain)
    assert_close(packed.weight, plain.weight.detach(), rtol=0, atol=0)
    assert_close(again(x), plain(x), rtol=0, atol=0)
    assert packed.nbytes < packed.dense_nbytes == plain.weight.nbytes
    assert (packed.bias is None) == (plain.bias is None)


def test_what_the_plain_layer_has_can_be_read() -> None:
    _, packed, _ = made("conv2d")
    assert (packed.in_channels, packed.kernel_size, packed.stride) == (8, (3, 3), (1, 1))
    assert made("linear")[1].out_features == 8
    assert made("Conv1D")[1].nf == 8
    with pytest.raises(AttributeError, match="in_features"):
        packed.in_features  # noqa: B018


def test_the_memory_format_is_kept() -> None:
    _, packed, x = made("conv2d")
    last = x.to(memory_format=torch.channels_last)
    assert packed(last).is_contiguous(memory_format=torch.channels_last)
    assert not packed(last).is_contiguous()
    assert packed(x).is_contiguous()
    assert_close(packed(last), packed(x).to(memory_format=torch.channels_last))
    strided = randn(2, 8, 5, 12)[..., ::2]
    assert packed(strided).is_contiguous()


def test_what_does_not_fit_is_named() -> None:
    _, packed, x = made("conv2d")
    with pytest.raises(ValueError, match=r"layer 'layer': an input of shape \[2, 7, 5, 6\], want"):
        packed(x[:, :7])
    with pytest.raises(ValueError, match=r"layer 'layer': an input of torch\.float64, want torch"):
        packed(x.double())
    unpadded = pack(sparse(nn.Conv2d(8, 4, 3)), Pattern(2, 4))
    with pytest.raises(ValueError, match=r"\[2, 8, 1, 1\].* it is smaller than the kernel"):
        unpadded(x[:, :, :1, :1])
    with pytest.raises(ValueError, match="unknown activation 'tanh'; known: none, relu"):
        packed(x, None, "tanh")
    with pytest.raises(ValueError, match="unknown kernel 'fast'"):
        pack(sparse(nn.Linear(8, 8)), Pattern(2, 4), kernel="fast")
    with pytest.raises(ValueError, match=r"fc\.weight \[8, 8\] is not 2:4"):
        pack(nn.Linear(8, 8), Pattern(2, 4), "fc")
    with pytest.raises(ValueError, match="layer 'fc' cannot be packed: Bilinear has no packed"):
        pack(nn.Bilinear(8, 8, 8), Pattern(2, 4), "fc")


def test_a_forward_of_its_own_is_not_lost() -> None:
    layer = nn.Linear(8, 8)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    assert "forward of its own" in str(why_not(layer))


@pytest.mark.parametrize("kind", ["linear", "Conv1D", "conv1d", "conv2d", "conv2d, groups"])
def test_the_state_is_stored_and_loaded(kind: str) -> None:
    _, packed, x = made(kind)
    torch.manual_seed(1)
    other = pack(sparse(LAYERS[kind][0]()), Pattern(2, 4))
    assert not torch.allclose(other(x), packed(x))
    state = packed.state_dict()
    parts = {"weight.values", "weight.positions", "weight.format"}
    assert set(state) == (parts if packed.bias is None else {*parts, "bias"})
    assert other.load_state_dict(state).missing_keys == []
    assert_close(other(x), packed(x), rtol=0, atol=0)
    state["weight.values"].zero_()
    assert bool((packed.weight != 0).any())


def bad(state: dict[str, Tensor], key: str, value: Any) -> dict[str, Tensor]:
    return {**state, key: value}


def test_a_state_that_does_not_fit_is_refused_by_name() -> None:
    model = nn.Sequential(made("linear")[1])
    before = model.state_dict()
    wide = nn.Sequential(pack(sparse(nn.Linear(16, 12)), Pattern(2, 4))).state_dict()
    other = sparse(nn.Linear(16, 8), Pattern(1, 4))
    thin = nn.Sequential(pack(other, Pattern(1, 4))).state_dict()
    values, text = before["0.weight.values"], before["0.weight.format"]
    for state, match in (
        (
            bad(wide, "0.bias", before["0.bias"]),
            r"0\.weight is 2:4 .*\[12, 16\].* \[8, 16\].* here",
        ),
        (thin, r"0\.weight is 1:4 along input .*, 2:4 along input"),
        (bad(before, "0.weight.values", values[:-1]), r"0\.weight: values of shape \[31, 2\]"),
        (bad(before, "0.weight.values", values.double()), r"0\.weight: values are torch.float64"),
        (bad(before, "0.weight.values", values * torch.nan), r"0\.weight.*NaN or infinity"),
        (bad(before, "0.weight.format", text[:-1]), r"0\.weight\.format is no JSON text"),
        (bad(before, "0.bias", torch.zeros(3)), r"size mismatch for 0\.bias"),
        ({"0.bias": before["0.bias"]}, r'Missing key\(s\).*"0\.weight\.format", "0\.weight\.pos'),
        ({**before, "0.weight": torch.zeros(8, 16)}, r'Unexpected key\(s\).*"0\.weight"'),
    ):
        with pytest.raises(RuntimeError, match=match):
            model.load_state_dict(state)
    found = nn.Sequential(made("linear")[1]).load_state_dict({}, strict=False)
    assert "0.weight.values" in found.missing_keys
    for name, tensor in model.state_dict().items():
        assert_close(tensor, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d", "Conv1D"])
def test_copies_and_pickles(kind: str, copied: Callable[[nn.Module], nn.Module]) -> None:
    _, packed, x = made(kind)
    other = copied(packed)
    assert_close(other(x), packed(x), rtol=0, atol=0)
    assert set(other.state_dict()) == set(packed.state_dict())
    assert other.tile0.data_ptr() != packed.tile0.data_ptr()
    assert not list(other._buffers.keys() - {"tile0", "tile1"})
    assert type(other.plain()) is type(packed.plain())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_change_of_dtype_tiles_anew(dtype: torch.dtype) -> None:
    plain, packed, x = made("linear")
    packed.to(dtype)
    assert packed.problem.dtype == packed.weight.dtype == dtype
    assert_close(packed.weight, plain.weight.detach().to(dtype), rtol=0, atol=0)
    assert_close(packed(x.to(dtype)), plain.to(dtype)(x.to(dtype)))


def test_a_dtype_that_the_kernel_refuses_changes_nothing() -> None:
    plain, _, x = made("linear")
    if KERNELS["native"].refuses(pack(plain, Pattern(2, 4)).problem) is not None:
        pytest.skip("no native library")
    packed = pack(plain, Pattern(2, 4), "fc", "native")
    with pytest.raises(ValueError, match=r"'fc' stays torch\.float32: .* decompress the model to"):
        packed.half()
    assert {tensor.dtype for tensor in (packed.bias, packed.tile0)} == {torch.float32}
    assert_close(packed(x), plain(x).detach())


def test_the_layer_says_what_it_is() -> None:
    _, packed, _ = made("linear")
    said = "PackedLinear([8, 16] 2:4, kernel=reference, 267 bytes (52% of dense))"
    assert repr(packed) == said
    assert (packed.nbytes, packed.dense_nbytes) == (267, 512)
    assert not packed.training
    assert not any(parameter.requires_grad for parameter in packed.parameters())


class Net(nn.Module):
    """Packed layers of every kind in a row, with a residual."""

    def __init__(self) -> None:
        super().__init__()
        pattern = Pattern(2, 4)
        self.conv = pack(sparse(nn.Conv2d(8, 8, 3, padding=1)), pattern, "conv")
        self.flat = pack(sparse(nn.Conv1d(8, 8, 3, padding=1)), pattern, "flat")
        self.fc = pack(sparse(nn.Linear(30, 8)), pattern, "fc")

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x, x, "relu")
        return self.fc(self.flat(x.flatten(2)), activation="gelu")


def net() -> tuple[Net, Tensor, Tensor]:
    torch.manual_seed(0)
    model, x = Net(), randn(2, 8, 5, 6)
    return model, x, model(x)


@torch.no_grad()
def test_compiled_into_one_graph() -> None:
    model, x, expected = net()
    for compiled in (
        torch.compile(model, fullgraph=True, backend="eager"),
        torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True),
    ):
        assert_close(compiled(x), expected)
        assert_close(compiled(x[:1]), expected[:1])
        last = x.to(memory_format=torch.channels_last)
        assert_close(compiled(last), expected)
    torch._dynamo.reset()


@torch.no_grad()
@pytest.mark.parametrize("strict", [False, True])
def test_exported(strict: bool) -> None:
    model, x, expected = net()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},), strict=strict)
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("nmsparsity.apply.default") == 3
    assert_close(program.module()(x), expected)
    assert_close(program.module()(torch.cat([x, x])), torch.cat([expected, expected]))


@torch.no_grad()
def test_a_compressed_model_is_compiled_and_exported() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))
    nm.prune(model.eval(), "2:4", include="*")
    x = randn(2, 8, 5, 6)
    packed = nm.compress(model, x, backend="reference")
    expected = model(x)
    assert_close(torch.compile(packed, fullgraph=True, backend="eager")(x), expected)
    assert_close(torch.export.export(packed, (x,)).module()(x), expected)
    torch._dynamo.reset()


class Rectified(nn.Module):
    """A packed layer, called with an activation."""

    def __init__(self, layer: PackedLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, None, "relu")


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
@pytest.mark.parametrize("kernel", ["reference", "native"])
def test_nothing_is_lost_behind_a_trace_or_a_gradient(kernel: str) -> None:
    if KERNELS[kernel].refuses(made("linear")[1].problem) is not None:
        pytest.skip("no native library")
    torch.manual_seed(0)
    plain = sparse(nn.Linear(16, 8))
    packed, x = Rectified(pack(plain, Pattern(2, 4), kernel=kernel)), torch.randn(3, 16)
    expected = plain(x).relu()
    with torch.no_grad():
        traced = torch.jit.trace(packed, x)
        assert_close(traced(x), expected)
        assert_close(traced(2 * x), plain(2 * x).relu())
        assert_close(make_fx(packed)(x)(2 * x), plain(2 * x).relu())
        assert_close(packed(nn.Parameter(x)), expected)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        assert packed(mode.from_tensor(x)).shape == (3, 8)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(packed(x).sum(), x)
    (wanted,) = torch.autograd.grad(plain(x).relu().sum(), x)
    assert_close(grad, wanted)
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    assert_close(torch.autograd.grad(compiled(x).sum(), x)[0], wanted)
    torch._dynamo.reset()
    with torch.inference_mode():
        assert packed(x).is_inference()


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_under_autocast_it_computes_in_the_dtype_of_its_weight(mode: str) -> None:
    plain, packed, x = made("linear")
    call: Any = packed
    if mode == "compiled":
        call = torch.compile(packed, fullgraph=True, backend="eager")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = call(x.bfloat16())
    assert_close(found, plain(x.bfloat16().float()).detach())
    torch._dynamo.reset()


def test_types() -> None:
    assert isinstance(made("linear")[1], PackedLinear)
    assert isinstance(made("conv2d")[1], PackedConv2d)
