"""The parts of compress by themselves: watching, tracing, swapping, taking apart again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import nmsparsity as nm
from nmsparsity.compression.observe import observe, run, same
from nmsparsity.compression.swap import places, swap
from nmsparsity.compression.trace import trace
from nmsparsity.layers import PackedLinear, pack
from nmsparsity.pattern import Pattern


def test_a_run_takes_a_tensor_a_tuple_or_names() -> None:
    class Add(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x.add_(y)

    one = torch.ones(2)
    for inputs in ((one, one), {"x": one, "y": one}):
        assert torch.equal(run(Add(), inputs), torch.full((2,), 2.0))
    assert run(nn.Identity(), [one, one])[1] is not one
    assert torch.equal(run(nn.ReLU(inplace=True), -one), torch.zeros(2))
    assert torch.equal(one, torch.ones(2))


def test_inputs_of_layers_are_counted_by_shape_and_format() -> None:
    conv = nn.Conv2d(2, 2, 1)
    x = torch.zeros(1, 2, 3, 4)
    model = nn.Sequential(conv, conv)
    _, calls = observe(model, x, [conv])
    assert calls == {conv: Counter({((1, 2, 3, 4), False): 2})}
    _, calls = observe(model, x.to(memory_format=torch.channels_last), [conv])
    assert calls == {conv: Counter({((1, 2, 3, 4), True): 2})}
    assert not conv._forward_pre_hooks


def test_what_counts_as_the_same() -> None:
    x = torch.tensor([1.0, 2.0, -1000.0])
    assert same({"a": [x]}, {"a": [x + 1e-4]})
    assert not same(x, x + 2)
    assert not same(x, x[:2])
    assert not same(x, x.double())
    assert not same(x, x * torch.nan)
    assert same(x * torch.nan, x * torch.nan)
    assert same(x.long(), x.long())
    assert not same(x.long(), x.long() + 1)
    assert same(x.half(), x.half() * 1.01)
    assert not same((x, x), (x,))


def test_swap_replaces_in_all_places_and_inside_what_is_new() -> None:
    inner, outer = nn.ReLU(), nn.Sequential(nn.Tanh())
    new = nn.Sequential(inner, inner)
    model = swap(nn.Sequential(outer, outer), {outer: new, inner: nn.GELU()})
    assert [type(module) for module in model.modules()][2:] == [nn.GELU]
    assert model[0] is model[1] is new
    assert swap(outer, {outer: inner}) is inner
    assert places(model)[new] == 2
    assert places(model)[new[0]] == 2


def test_reasons_are_those_of_the_nearest_module() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) if x.sum() > 0 else x

    model = nn.Sequential(nn.Sequential(Loop()), nn.Linear(4, 4))
    traced = trace(model, [model[0][0].fc, model[1]])
    assert not traced.graphs
    assert "Loop.forward cannot be traced: TraceError" in traced.reasons[model[0][0].fc]
    assert "Sequential.forward cannot be traced" in traced.reasons[model[1]]


def test_decompress_takes_models_with_packed_layers_of_any_origin() -> None:
    plain = nn.Linear(8, 8)
    nm.prune(plain, "2:4", include="*")
    model = nn.Sequential(pack(plain, Pattern(2, 4), "fc"))
    assert_close(nm.decompress(model)[0].weight, plain.weight, rtol=0, atol=0)
    assert isinstance(model[0], PackedLinear)


def test_packed_layers_are_not_packed_pruned_or_trained_again() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    nm.prune(model, "2:4", include="*")
    packed = nm.compress(model, backend="reference")
    with pytest.raises(ValueError, match="this Sequential has packed layers already: nms"):
        nm.compress(packed)
    with pytest.raises(ValueError, match="can be 1:4: 2 x it is packed: nms"):
        nm.prune(packed, "1:4", include="*")
    rows = nm.verify(packed).rows
    assert [(row.name, row.shape) for row in rows] == [("0.weight", (8, 8)), ("1.weight", (8, 8))]
    assert all("it is packed" in row.reason for row in rows)


def test_a_packed_model_is_saved_as_the_plain_one(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).eval()
    nm.prune(model, "2:4", include="*")
    packed = nm.compress(model, backend="reference")
    with pytest.raises(ValueError, match=r"layer '0' cannot be saved: it is packed: nms"):
        nm.save(packed, tmp_path / "m.safetensors")
    assert not any(tmp_path.iterdir())
    nm.save(nm.decompress(packed), tmp_path / "m.safetensors")
    loaded = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    nm.load(tmp_path / "m.safetensors", loaded)
    assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_a_wrapped_model_is_unwrapped() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    nm.prune(model, "2:4", include="*")
    wrapped: Any = torch.optim.swa_utils.AveragedModel(model)
    packed = nm.compress(wrapped, backend="reference")
    assert type(packed) is nn.Sequential
    assert isinstance(packed[0], PackedLinear)
    assert type(model[0]) is nn.Linear


def test_a_model_that_is_one_layer() -> None:
    layer = nn.Linear(8, 8)
    nm.prune(layer, "2:4", include="*")
    packed = nm.compress(layer, backend="reference")
    assert isinstance(packed, PackedLinear)
    assert_close(packed(torch.ones(2, 8)), layer(torch.ones(2, 8)))
    assert type(nm.decompress(packed)) is nn.Linear
    assert nm.compressed_report(packed).rows[0].kernel == "reference"


def test_training_goes_on_after_compress() -> None:
    """A copy is compressed: the model, its optimizer and its promises stay in use."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    nm.sparsify(model, optimizer, "2:4", include="*")
    packed = nm.compress(model, backend="reference")
    x = torch.randn(4, 8)
    before = packed(x).clone()
    assert_close(before, model(x))
    model(x).square().mean().backward()
    optimizer.step()
    assert nm.verify(model).ok
    assert_close(packed(x), before, rtol=0, atol=0)
    assert not torch.allclose(model(x), before)
