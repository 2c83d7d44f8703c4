"""The weight of a packed layer: asked what it is it costs nothing, used it is a plain tensor."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

import nmsparsity as nm
from nmsparsity.layers import PackedLayer, pack
from nmsparsity.layers.lazy_weight import LazyWeight
from nmsparsity.pattern import Pattern

DENSE = torch.tensor([[0.0, 1.0], [2.0, 0.0]])


def made() -> tuple[Tensor, list[int]]:
    """A weight, and a list that grows when it is unpacked."""
    unpacked: list[int] = []

    def unpack() -> Tensor:
        unpacked.append(1)
        return DENSE.clone()

    return LazyWeight((2, 2), torch.float32, torch.device("cpu"), unpack), unpacked


def test_asked_what_it_is_it_is_not_unpacked() -> None:
    weight, unpacked = made()
    assert isinstance(weight, Tensor)
    assert (weight.dtype, weight.device, weight.layout) == (DENSE.dtype, DENSE.device, DENSE.layout)
    assert weight.shape == weight.size() == DENSE.shape
    assert (weight.ndim, weight.dim(), weight.size(1), weight.numel(), weight.nbytes) == (
        *(2, 2, 2, 4),
        16,
    )
    assert weight.is_floating_point()
    assert not weight.requires_grad
    assert unpacked == []


USES: dict[str, Callable[[Tensor], Any]] = {
    "sum": lambda w: w.sum(),
    "operators": lambda w: 1 - w @ w + w,
    "index": lambda w: w[1],
    "linear": lambda w: functional.linear(torch.ones(1, 2), w),
    "numpy": lambda w: torch.from_numpy(w.numpy()),
    "list": lambda w: torch.tensor(w.tolist()),
    "detach": lambda w: w.detach(),
    "data": lambda w: w.data,
    "cast": lambda w: w.to(torch.float64),
    "deepcopy": copy.deepcopy,
    "pickle": lambda w: pickle.loads(pickle.dumps(w)),
    "stack": lambda w: torch.stack([w, w]),
    "parameter": lambda w: nn.Parameter(w.detach()).detach(),
}


@pytest.mark.parametrize("use", USES)
def test_used_it_is_unpacked_once_and_plain(use: str) -> None:
    weight, unpacked = made()
    found = USES[use](weight)
    assert type(found) is Tensor
    assert_close(found, USES[use](DENSE), rtol=0, atol=0)
    assert repr(weight) == repr(DENSE)
    assert unpacked == [1]


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(8, 4),
    "Conv1D": lambda: Conv1D(8, 8),
    "conv1d": lambda: nn.Conv1d(8, 4, 3),
    "conv2d": lambda: nn.Conv2d(8, 4, 3),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_of_a_layer_it_is_laid_out_as_the_plain_one_has_it(kind: str) -> None:
    plain: Any = LAYERS[kind]()
    nm.prune(plain, "2:4", include="*")
    packed = pack(plain, Pattern(2, 4))
    assert packed.weight.shape == plain.weight.shape
    assert_close(packed.weight, plain.weight.detach(), rtol=0, atol=0)


class Asking(nn.Module):
    """Casts its input to the dtype of a weight, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor, flip: bool = False) -> Tensor:
        assert isinstance(self.fc.weight, Tensor)
        return self.fc(x.to(self.fc.weight.dtype).view(-1, self.fc.weight.shape[1]))


def test_models_that_ask_are_compiled_and_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Asking().eval(), torch.randn(3, 8, dtype=torch.float64)
    nm.prune(model, "2:4", include="*")
    packed, expected = nm.compress(model, backend="reference"), model(x).detach()
    monkeypatch.setattr(PackedLayer, "unpacked", lambda self: pytest.fail("it is unpacked"))
    with torch.no_grad():
        assert_close(packed(x), expected)
        compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
        assert_close(compiled(x), expected)
        program = torch.export.export(packed, (x,))
    assert_close(program.module()(x), expected)
    torch._dynamo.reset()
