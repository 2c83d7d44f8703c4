"""Where fusing is easy to get wrong: every model computes what it did, and the report says why."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.testing import assert_close
from torchvision.ops import FrozenBatchNorm2d

import nmsparsity as nm
from nmsparsity.compression.report import CompressedRow
from nmsparsity.layers import PackedConv2d, PackedLayer, PackedLinear


class Two(nn.Module):
    """Two convolutions, a batch norm, and a forward that the test gives."""

    def __init__(self, forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.norm, self.relu = normed(nn.BatchNorm2d(8)), nn.ReLU(inplace=True)
        self.drop, self.small = nn.Dropout(0.5), nn.Conv2d(8, 1, 1)
        self.body = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def normed(norm: nn.Module) -> nn.Module:
    for tensor, low in ((norm.running_mean, -1.0), (norm.running_var, 0.5), (norm.weight, 0.5)):
        if tensor is not None:
            nn.init.uniform_(tensor, low, 1.5)
    if norm.bias is not None:
        nn.init.normal_(norm.bias)
    return norm


def pruned(model: nn.Module, include: Any = ("*",)) -> nn.Module:
    nm.prune(model, "2:4", include=list(include))
    return model.eval()


def rows(model: nn.Module) -> dict[str, CompressedRow]:
    return {row.layer: row for row in nm.compressed_report(model).rows}


def image(channels: int = 8) -> Tensor:
    return torch.randn(2, channels, 6, 6, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def check(model: nn.Module, x: Any, tolerance: float = 1e-5) -> dict[str, CompressedRow]:
    """Compress with and without example inputs; the same results; the rows of the latter."""
    inputs = x if isinstance(x, tuple) else (x,)
    expected = model(*copy.deepcopy(inputs))
    for example in (inputs, None):
        packed = nm.compress(model, copy.deepcopy(example), backend="reference")
        for found in (packed, nm.decompress(packed)):
            got = found(*copy.deepcopy(inputs))
            assert_close(got, expected, rtol=tolerance, atol=tolerance)
    return rows(packed)


def two(forward: Callable[..., Tensor]) -> dict[str, CompressedRow]:
    torch.manual_seed(0)
    return check(pruned(Two(forward)), image())


SHARED = "not fused: it is called more than once: what follows differs"
FUSED = {
    "norm, sum, relu in place": (
        lambda m, x: m.relu(m.norm(m.conv(x)) + x),
        ("batch norm", "residual", "relu"),
        "",
    ),
    "the sum the other way round": (lambda m, x: x + m.conv(x), ("residual",), ""),
    "a sum in place": (lambda m, x: operator.iadd(m.conv(x), x).relu_(), ("residual", "relu"), ""),
    "dropout": (lambda m, x: torch.relu(m.drop(m.norm(m.conv(x)))), ("batch norm", "relu"), ""),
    "gelu": (lambda m, x: functional.gelu(m.conv(x)), ("gelu",), ""),
    "gelu, tanh": (lambda m, x: functional.gelu(m.conv(x), approximate="tanh"), ("gelu_tanh",), ""),
    "silu": (lambda m, x: functional.silu(m.conv(x)), ("silu",), ""),
    "functional relu in place": (lambda m, x: functional.relu(m.conv(x), True), ("relu",), ""),
    "functional batch norm": (
        lambda m, x: functional.batch_norm(
            m.conv(x), m.norm.running_mean, m.norm.running_var, m.norm.weight, m.norm.bias
        ),
        ("batch norm",),
        "",
    ),
    "called twice": (lambda m, x: m.relu(m.conv(m.relu(m.conv(x)))), (), SHARED),
    "its result is used twice": (
        lambda m, x: (y := m.conv(x)) * 2 + m.norm(y),
        (),
        "not fused: its result is used 2 times",
    ),
    "a sum with itself": (lambda m, x: (y := m.conv(x)) + y, (), "not fused: add follows"),
    "alpha": (lambda m, x: torch.add(m.conv(x), x, alpha=3), (), "not fused: add follows"),
    "a number": (lambda m, x: m.conv(x) + 1.5, (), "not fused: add follows"),
    "the sum writes into the other": (
        lambda m, x: (y := x * 2).add_(m.conv(x)) + y,
        (),
        "not fused: the sum that follows writes into its other summand",
    ),
    "its input changes before the sum": (
        lambda m, x: [h := x * 2, y := m.conv(h), r := h.relu_(), y + r][-1],
        (),
        "not fused: what happens before the sum that follows may change the input of the layer",
    ),
    "norm before the layer": (lambda m, x: m.conv(m.norm(x)), (), ""),
    "activation before the sum": (lambda m, x: m.relu(m.conv(x)) + x, ("relu",), ""),
    "norm after the sum": (
        lambda m, x: m.norm(m.conv(x) + x),
        ("residual",),
        "not fused: BatchNorm2d follows",
    ),
    "norm after the activation": (lambda m, x: m.norm(m.relu(m.conv(x))), ("relu",), ""),
    "a residual that is wider": (lambda m, x: m.conv(x)[:1] + x, (), "not fused: getitem follows"),
    "leaky": (lambda m, x: functional.leaky_relu(m.conv(x)), (), "not fused: leaky_relu follows"),
}


@pytest.mark.parametrize("kind", FUSED)
def test_what_is_fused_and_what_not(kind: str) -> None:
    forward, fused, reason = FUSED[kind]
    row = two(forward)["conv"]
    assert (row.fused, row.reason) == (fused, reason)


def test_of_two_layers_in_a_sum_the_later_has_it() -> None:
    found = two(lambda m, x: m.relu(m.norm(m.conv(x)) + m.other(x)))
    assert found["other"].fused == ("residual", "relu")
    assert found["conv"].fused == ("batch norm",)
    assert "another layer" in found["conv"].reason


def test_a_residual_of_another_shape_is_broadcast() -> None:
    assert two(lambda m, x: m.relu(m.conv(x) + x[:1, :, :1]))["conv"].fused == ("residual", "relu")
    assert two(lambda m, x: m.small(x) + x)["small"].fused == ("residual",)


def test_a_residual_of_another_dtype_is_promoted() -> None:
    assert two(lambda m, x: m.conv(x) + x.double())["conv"].fused == ("residual",)


def test_a_residual_that_is_a_number() -> None:
    assert two(lambda m, x: m.conv(x) + x.size(0))["conv"].fused == ("residual",)


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (nn.BatchNorm2d(8, affine=False), ""),
        (FrozenBatchNorm2d(8), ""),
        (nn.SyncBatchNorm(8), ""),
        (nn.BatchNorm2d(8, track_running_stats=False), "takes those of the batch"),
        (nn.GroupNorm(2, 8), "GroupNorm follows"),
    ],
)
def test_kinds_of_norm(norm: nn.Module, reason: str) -> None:
    if not isinstance(norm, nn.GroupNorm):
        normed(norm)
    row = check(pruned(nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), norm)), image())["0"]
    assert row.fused == (() if reason else ("batch norm",))
    assert reason in row.reason


def test_a_norm_that_would_overflow_is_not_folded() -> None:
    norm = nn.BatchNorm2d(8)
    nn.init.constant_(norm.weight, 1e38)
    nn.init.constant_(norm.running_var, 1e-4)
    model = pruned(nn.Sequential(nn.Conv2d(8, 8, 1), norm))
    row = rows(nm.compress(model, backend="reference"))["0"]
    assert row.fused == ()
    assert "infinite" in row.reason


def test_a_norm_used_twice_is_folded_into_both() -> None:
    found = two(lambda m, x: m.norm(m.other(m.norm(m.conv(x)))))
    assert found["conv"].fused == found["other"].fused == ("batch norm",)


def test_norms_of_one_dimension() -> None:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv1d(8, 8, 3, stride=2), normed(nn.BatchNorm1d(8)), nn.ReLU())
    assert check(pruned(conv), torch.randn(2, 8, 9))["0"].fused == ("batch norm", "relu")
    linear = pruned(nn.Sequential(nn.Linear(8, 8), normed(nn.BatchNorm1d(8))))
    x = torch.randn(4, 8)
    assert "example_inputs" in check(linear, x)["0"].reason
    packed = nm.compress(linear, x, backend="reference")
    assert rows(packed)["0"].fused == ("batch norm",)


def test_a_norm_of_other_channels_than_the_linear_layer_has() -> None:
    """Of ``[batch, 8, 8]`` a linear layer has the last as outputs, batch norm the second."""
    torch.manual_seed(0)
    model = pruned(nn.Sequential(nn.Linear(8, 8), normed(nn.BatchNorm1d(8))))
    x = torch.randn(4, 8, 8)
    check(model, x)
    assert rows(nm.compress(model, x, backend="reference"))["0"].fused == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = pruned(Two(lambda m, x: m.relu(m.norm(m.conv(x)) + x)).to(dtype))
    tolerance = {torch.float64: 1e-12, torch.float16: 1e-2}.get(dtype, 1e-1)
    row = check(model, image().to(dtype), tolerance)["conv"]
    assert row.fused == ("batch norm", "residual", "relu")


def test_a_norm_of_another_dtype_is_not_folded() -> None:
    model = pruned(nn.Sequential(nn.Conv2d(8, 8, 1).bfloat16(), normed(nn.BatchNorm2d(8))))
    row = check(model, image().bfloat16(), 1e-1)["0"]
    assert (row.fused, "dtype" in row.reason) == ((), True)


def test_a_model_in_training_mode_stays_there() -> None:
    torch.manual_seed(0)
    model = pruned(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Dropout(0.9)))
    expected = model(image())
    model.train()
    packed = nm.compress(model, image(), backend="reference")
    assert not any(module.training for module in packed.modules())
    assert all(module.training for module in model.modules())
    assert_close(packed(image()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("where", ["0", "1", "2"])
def test_hooks_see_what_they_saw(where: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 1), normed(nn.BatchNorm2d(8)), nn.ReLU())
    seen: list[Tensor] = []
    pruned(model).get_submodule(where).register_forward_hook(lambda m, i, o: seen.append(o.clone()))
    x = image()
    expected = model(x)
    packed = nm.compress(model, backend="reference")
    assert_close(packed(x), expected, rtol=1e-5, atol=1e-5)
    assert len(seen) == 2
    assert_close(seen[1], seen[0], rtol=1e-5, atol=1e-5)
    nm.decompress(packed)(x)
    assert len(seen) == 3


def test_a_hook_on_the_model_and_one_on_a_block() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()), nn.Conv2d(8, 8, 1))
    model = nn.Sequential(block, nn.ReLU())
    calls: list[str] = []
    model.register_forward_hook(lambda *a: calls.append("model"))
    block.register_forward_pre_hook(lambda *a: calls.append("block"))
    pruned(model)
    packed = nm.compress(model, backend="reference")
    packed(image())
    assert calls == ["block", "model"]
    assert rows(packed)["0.0.0"].fused == ("relu",)
    assert "hooks" in rows(packed)["0.1"].reason


def test_tied_weights_stay_tied_and_dense() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    pruned(model)
    packed = nm.compress(model, backend="reference")
    assert "tied" in rows(packed)["0.weight"].reason
    assert packed.get_submodule("0").weight is packed.get_submodule("1").weight
    assert isinstance(packed.get_submodule("2"), PackedLinear)


def test_one_module_in_two_places_is_packed_once() -> None:
    torch.manual_seed(0)
    shared = nn.Linear(8, 8)
    model = pruned(nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU()))
    row = check(model, torch.randn(2, 8))["0"]
    assert (row.fused, row.reason) == ((), SHARED)
    packed = nm.compress(model, backend="reference")
    assert packed[0] is packed[2]


def test_parametrized_layers_stay_dense() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    pruned(model)
    parametrize.register_parametrization(model[1], "weight", nn.Identity())
    packed = nm.compress(model, backend="reference")
    assert "parametrization" in rows(packed)["1.weight"].reason
    assert_close(packed(torch.ones(2, 8)), model(torch.ones(2, 8)))


class Scaled(nn.Linear):
    """A linear layer that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    ("layer", "x", "reason"),
    [
        (Scaled(8, 8), torch.ones(2, 8), "a forward of its own"),
        (nn.Conv3d(8, 8, 1), torch.ones(1, 8, 2, 2, 2), "no packed form"),
        (nn.ConvTranspose2d(8, 8, 2), image(), "no packed form"),
        (nn.LSTM(8, 8), torch.ones(3, 8), "no packed form"),
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), image(), "padding mode"),
        (nn.Conv2d(8, 8, 2, padding="same"), image(), "one side more"),
        (nn.MultiheadAttention(8, 2, add_bias_kv=True), (torch.ones(3, 8),) * 3, "bias_k"),
    ],
)
def test_what_has_no_packed_form_stays_dense(layer: nn.Module, x: Any, reason: str) -> None:
    model = nn.ModuleDict({"layer": layer, "linear": nn.Linear(8, 8)})
    pruned(model)
    packed: Any = nm.compress(model, backend="reference")
    inputs = x if isinstance(x, tuple) else (x,)
    assert_close(packed["layer"](*inputs), layer(*inputs), rtol=0, atol=0)
    found = [
        row
        for row in rows(packed).values()
        if row.layer.startswith("layer.") and "weight" in row.layer
    ]
    assert found
    assert all(row.kernel is None and reason in row.reason for row in found)


class Picky(nn.Module):
    """Goes another way for what is no tensor, as a proxy is none."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Any) -> Tensor:
        return torch.relu(self.fc(x)) if isinstance(x, Tensor) else torch.tanh(self.fc(x))


def test_a_trace_that_goes_astray_is_noticed() -> None:
    torch.manual_seed(0)
    model, x = pruned(Picky()), torch.randn(4, 8)
    packed = nm.compress(model, x, backend="reference")
    assert_close(packed(x), model(x), rtol=1e-5, atol=1e-5)
    assert isinstance(packed, Picky)
    assert "another result on the example inputs" in rows(packed)["fc"].reason


class Rectified(nn.Module):
    """A part that can be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.fc(x))


class Outsider(nn.Module):
    """Calls a layer inside a part as well as the part; cannot be traced itself."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Rectified()

    def forward(self, x: Tensor, flip: bool = False) -> Tensor:
        return self.part(x) + self.part.fc(x)


def test_an_activation_belongs_to_the_call_and_not_to_the_layer() -> None:
    torch.manual_seed(0)
    assert check(pruned(Outsider()), torch.randn(4, 8))["part.fc"].fused == ("relu",)


class Reader(nn.Module):
    """Reads the weight of a layer itself, and has one it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.unused, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(functional.linear(x, self.fc.weight, self.fc.bias))


class UntracedReader(Reader):
    """The same, out of reach for a tracer."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() < 1e9 else x


@pytest.mark.parametrize("kind", [Reader, UntracedReader])
def test_a_weight_that_others_read_stays_dense(kind: type[Reader]) -> None:
    torch.manual_seed(0)
    model, x = pruned(kind()), torch.randn(2, 8)
    packed = nm.compress(model, x, backend="reference")
    assert_close(packed(x), model(x))
    found = rows(packed)
    assert (found["fc"].kernel, found["out"].kernel) == (None, "reference")
    assert "read" in found["fc"].reason
    assert "nothing calls it" in found["unused"].reason


def test_a_weight_that_others_read_is_seen_in_the_trace() -> None:
    found = rows(nm.compress(pruned(Reader()), backend="reference"))
    assert [row.kernel for row in found.values()] == [None, None, "reference"]
    assert "others read its weight themselves" in found["fc"].reason
    assert "nothing calls it" in found["unused"].reason


def test_a_weight_that_others_only_ask_what_it_is_is_packed() -> None:
    found = two(lambda m, x: m.relu(m.conv(x.to(m.conv.weight.dtype))) * m.conv.weight.shape[0])
    assert (found["conv"].kernel, found["conv"].fused) == ("reference", ("relu",))


def test_a_weight_that_others_read_is_not_folded_into() -> None:
    found = two(lambda m, x: m.norm(m.conv(x)) + m.conv.weight.sum())
    assert (found["conv"].kernel, found["conv"].fused) == (None, ())


class Branching(nn.Module):
    """Cannot be traced as a whole; its block can."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.fc, self.norm = nn.Linear(8, 8), normed(nn.BatchNorm1d(8))

    def forward(self, x: Tensor, flip: bool = False) -> Tensor:
        x = self.norm(self.fc(self.block(x)))
        return -x if flip or x.sum() > 1e9 else x


def test_what_cannot_be_traced_is_packed_and_its_parts_are_fused() -> None:
    torch.manual_seed(0)
    model, x = pruned(Branching()), torch.randn(4, 8)
    packed = nm.compress(model, x, backend="reference")
    assert isinstance(packed, Branching)
    assert_close(packed(x, flip=True), model(x, flip=True), rtol=1e-5, atol=1e-5)
    found = rows(packed)
    assert found["block.0"].fused == ("relu",)
    assert found["fc"].fused == ()
    assert "Branching.forward takes optional arguments (flip)" in found["fc"].reason


def test_without_fusing_the_modules_stay_what_they_were() -> None:
    model = pruned(nn.Sequential(nn.Linear(8, 8), nn.Tanh()))
    assert type(nm.compress(model, backend="reference")) is nn.Sequential


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("part", ["self_attn", "linear1", "*"])
def test_the_encoder_does_not_go_around_packed_layers(part: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    nm.prune(model, "2:4", include=f"*{part}*")
    model.eval()
    x, padding = torch.randn(2, 5, 16), torch.tensor([[0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]).bool()
    packed: Any = nm.compress(model, backend="reference")
    layers = [module for module in packed.modules() if isinstance(module, PackedLayer)]
    calls: list[nn.Module] = []
    for each in layers:
        each.register_forward_hook(lambda module, *a: calls.append(module))
    with torch.no_grad():
        expected = model(x, src_key_padding_mask=padding)
        got = packed(x, src_key_padding_mask=padding)
    assert set(calls) == set(layers)
    assert len(layers) == {"self_attn": 8, "linear1": 2, "*": 12}[part]
    assert_close(got[~padding], expected[~padding], rtol=1e-4, atol=1e-5)
    plain: Any = nm.decompress(packed)
    with torch.no_grad():
        again = plain(x, src_key_padding_mask=padding)
    assert_close(again[~padding], expected[~padding], rtol=1e-4, atol=1e-5)
    assert plain.layers[0].activation_relu_or_gelu == 1
    assert plain.use_nested_tensor


def test_the_decoder_layer() -> None:
    torch.manual_seed(0)
    model = nn.TransformerDecoderLayer(16, 2, 32)
    nm.prune(model, "2:4", include="*")
    found = check(model.eval(), (torch.randn(5, 2, 16), torch.randn(7, 2, 16)))
    assert len([row for row in found.values() if row.kernel]) == 10


def test_saved_and_loaded_models_go_straight_into_compress(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = pruned(nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1)))
    nm.save(model, tmp_path / "model.safetensors")
    other = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1))
    nm.load(tmp_path / "model.safetensors", other)
    packed = nm.compress(other, backend="reference")
    assert all(isinstance(packed.get_submodule(name), PackedConv2d) for name in ("0", "2"))
    assert_close(packed(image()), model(image()), rtol=1e-5, atol=1e-5)


def test_dense_weights_are_not_called_sparse() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    with pytest.raises(ValueError, match="no weight of this Sequential is N:M"):
        nm.compress(model)
    model[0].weight.data.masked_fill_(torch.rand(64, 64) < 0.5, 0.0)
    nm.prune(model, "2:4", include="1")
    packed = nm.compress(model, backend="reference")
    assert rows(packed)["0.weight"].reason == "dense: it shows no pattern"


def test_weights_without_a_promise_are_packed_by_what_they_show() -> None:
    torch.manual_seed(0)
    model = pruned(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)))
    packed = nm.compress(copy.deepcopy(model), backend="reference")
    assert [row.pattern for row in rows(packed).values()] == ["2:4", "2:4"]


def test_a_broken_promise_is_an_error() -> None:
    model = pruned(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    nn.init.ones_(model[0].weight)
    with pytest.raises(ValueError, match=r"0\.weight \[8, 8\] is not 2:4"):
        nm.compress(model, backend="reference")


def test_rules() -> None:
    model = pruned(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    packed = nm.compress(model, backend="reference", exclude="1")
    assert rows(packed)["1.weight"].reason == "excluded by rule"
    with pytest.raises(ValueError, match="matches no layer"):
        nm.compress(model, include="head")
    with pytest.raises(ValueError, match=r"unknown kernel 'refrence'; .* did you mean 'reference'"):
        nm.compress(model, backend="refrence")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_compressed_models_are_copied_pickled_and_keep_their_report(
    copied: Callable[[nn.Module], nn.Module],
) -> None:
    torch.manual_seed(0)
    model = pruned(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(288, 8)))
    packed = nm.compress(model, backend="reference")
    other = copied(packed)
    assert_close(other(image()), packed(image()), rtol=0, atol=0)
    assert nm.compressed_report(other) == nm.compressed_report(packed)
    nn.init.zeros_(other.get_submodule("3").bias)
    assert not bool((packed.get_submodule("3").bias == 0).all())


def test_a_state_dict_goes_from_one_compressed_model_to_another() -> None:
    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return pruned(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1)))

    one, other = (nm.compress(make(seed), backend="reference") for seed in (0, 1))
    assert not torch.allclose(one(image()), other(image()))
    other.load_state_dict(one.state_dict())
    assert_close(other(image()), one(image()), rtol=0, atol=0)


def test_the_report_prints() -> None:
    found = two(lambda m, x: m.relu(m.conv(x)))
    assert found["conv"].nbytes < found["conv"].dense_nbytes == 8 * 8 * 9 * 4
    model = pruned(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)))
    report = nm.compressed_report(nm.compress(model, backend="reference", exclude="2"))
    lines = str(report).splitlines()
    assert lines[2].split() == ["0", "2:4", "reference", "134", "256", "relu"]
    assert lines[-1] == "1 of 2 weights are packed; 390 of 512 bytes (76.2%)"
    assert '"kernel": "reference"' in report.to_json()
    with pytest.raises(ValueError, match="was not made by"):
        nm.compressed_report(model)
