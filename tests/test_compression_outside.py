"""Models that use more of their parts than their forward: still what they were, or it is said."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import nmsparsity as nm
from nmsparsity.compression.report import CompressedRow


class Block(nn.Module):
    """A part that can be traced, with a setting, tensors and a method that others use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        nn.init.uniform_(self.norm.weight, 1.5, 2.0)
        self.scale, self.act = 3.0, torch.sigmoid
        self.shift = nn.Parameter(torch.ones(1))
        self.register_buffer("table", torch.arange(6.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))

    def other(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Around(nn.Module):
    """Cannot be traced; uses its part as the test says."""

    def __init__(self, use: Callable[[Any, Tensor], Tensor], part: nn.Module) -> None:
        super().__init__()
        self.part, self.use = part, use
        self.last = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())

    def forward(self, x: Tensor, flip: bool = False) -> Tensor:
        return self.last(self.use(self.part, x))


def sequence() -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU())


def one_by_one(part: nn.Sequential, x: Tensor) -> Tensor:
    for layer in part:
        x = layer(x)
    return x * len(part)


USES: dict[str, tuple[Callable[[Any, Tensor], Tensor], Callable[[], nn.Module]]] = {
    "data": (lambda p, x: p.act(p(x)) * p.scale + p.shift + p.table, Block),
    "a method": (lambda p, x: p.other(x) + p(x), Block),
    "a layer before the norm": (lambda p, x: p.conv(x) + p(x), Block),
    "a weight": (lambda p, x: p.conv.weight.sum() + p(x), Block),
    "one by one": (one_by_one, sequence),
}


def made(use: str) -> tuple[Around, Tensor]:
    torch.manual_seed(0)
    how, part = USES[use]
    model = Around(how, part()).eval()
    nm.prune(model, "2:4", include="*")
    return model, torch.randn(2, 8, 6, 6)


def rows(model: nn.Module) -> dict[str, CompressedRow]:
    return {row.layer: row for row in nm.compressed_report(model).rows}


@torch.no_grad()
@pytest.mark.parametrize("use", USES)
def test_with_example_inputs_every_use_is_seen(use: str) -> None:
    model, x = made(use)
    packed = nm.compress(model, x, backend="reference")
    for found in (packed, nm.decompress(packed), copy.deepcopy(packed)):
        assert_close(found(x), model(x), rtol=1e-5, atol=1e-5)
    assert all(row.kernel == "reference" for row in rows(packed).values())


def test_what_is_used_besides_a_part_decides_whether_it_is_fused() -> None:
    packed = nm.compress(*made("data"), backend="reference")
    assert rows(packed)["part.conv"].fused == ("batch norm", "relu")
    packed = nm.compress(*made("one by one"), backend="reference")
    assert rows(packed)["part.0"].reason == "not fused: nothing calls the Sequential around it"
    assert rows(packed)["last.0"].fused == ("relu",)
    packed = nm.compress(*made("a method"), backend="reference")
    assert "traced, the model fails: AttributeError: 'Block'" in rows(packed)["part.conv"].reason
    packed = nm.compress(*made("a layer before the norm"), backend="reference")
    assert "packed, the model gives another result" in rows(packed)["part.conv"].reason


@torch.no_grad()
def test_a_traced_part_keeps_its_settings_and_unused_tensors() -> None:
    model, x = made("data")
    packed = nm.compress(model, backend="reference")
    for found in (packed, copy.deepcopy(packed), nm.decompress(packed)):
        assert isinstance(found.get_submodule("part"), torch.fx.GraphModule)
        assert_close(found(x), model(x), rtol=1e-5, atol=1e-5)
        assert "part.shift" in found.state_dict()
        assert "part.table" not in found.state_dict()
    part = pickle.loads(pickle.dumps(packed.get_submodule("part")))
    assert (part.scale, part.act, float(part.shift), part.table.shape) == (
        3.0,
        torch.sigmoid,
        1,
        (6,),
    )


class Listed(nn.Module):
    """Holds its layer a second time, where no module is looked for."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.layers, self.call = [self.fc], self.fc.forward

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.fc(x))


def test_dense_layers_are_not_kept_alive() -> None:
    model = nn.Sequential(Listed())
    nm.prune(model, "2:4", include="*")
    packed: Any = nm.compress(model, backend="reference")
    assert rows(packed)["0.fc"].fused == ("relu",)
    assert not any(
        hasattr(module, name) for module in packed.modules() for name in ("layers", "call")
    )


class Choosing(nn.Module):
    """Draws what it returns, as a model that writes does."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU())

    def forward(self, x: Tensor, flip: bool = False) -> Tensor:
        return torch.multinomial(self.body(x).softmax(-1), 4)


def test_what_draws_random_numbers_is_fused() -> None:
    torch.manual_seed(0)
    model, x = Choosing(), torch.randn(16, 8)
    nm.prune(model, "2:4", include="*")
    state = torch.get_rng_state()
    packed = nm.compress(model, x, backend="reference")
    assert rows(packed)["body.0"].fused == ("relu",)
    assert torch.equal(torch.get_rng_state(), state)


class Counting(nn.Module):
    """Gives another result every time."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.calls = nn.Linear(8, 8), 0

    def forward(self, x: Tensor, flip: bool = False) -> Tensor:
        self.calls += 1
        return self.fc(x) * self.calls


def test_another_result_is_a_warning() -> None:
    model = Counting()
    nm.prune(model, "2:4", include="*")
    with pytest.warns(RuntimeWarning, match="packed, the model gives another result .* Counting"):
        packed = nm.compress(model, torch.randn(2, 8), backend="reference")
    assert rows(packed)["fc"].kernel == "reference"


class Taking(nn.Module):
    """Takes a parameter out of its layer, where a packed one has none."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor, flip: bool = False) -> Tensor:
        return self.fc(x) + self.get_parameter("fc.weight").sum()


def test_a_model_that_fails_packed_is_an_error() -> None:
    model = Taking()
    nm.prune(model, "2:4", include="*")
    with pytest.raises(RuntimeError, match="packed, the model fails: AttributeError: `weight` is"):
        nm.compress(model, torch.randn(2, 8), backend="reference")


class Named(nn.Module):
    """Names the argument of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.conv = nn.Linear(8, 8), nn.Conv1d(8, 8, 1)

    def forward(self, x: Tensor, flip: bool = False) -> Tensor:
        return self.conv(input=self.fc(input=x))


@torch.no_grad()
def test_a_layer_that_is_called_by_the_name_of_its_argument() -> None:
    model, x = Named(), torch.randn(8, 8)
    nm.prune(model, "2:4", include="*")
    for inputs in (x, None):
        packed = nm.compress(model, inputs, backend="reference")
        assert_close(packed(x), model(x), rtol=1e-5, atol=1e-5)
        assert [row.kernel for row in rows(packed).values()] == ["reference"] * 2
