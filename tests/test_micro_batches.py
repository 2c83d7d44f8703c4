"""A batch a few entries at a time gives what the batch gives."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import nmsparsity as nm


class Two(nn.Module):
    """Named arguments, nested results, something that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.sizes: list[int] = []

    def forward(self, x: Tensor, *, scale: Tensor, twice: bool) -> dict[str, tuple[Tensor, ...]]:
        self.sizes.append(len(x))
        y = self.linear(x) * scale
        return {"y": (2 * y if twice else y, scale)}


@pytest.mark.parametrize(("size", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (9, [5])])
def test_nested_arguments_and_results(size, sizes):
    model = Two()
    x, scale = torch.randn(5, 8), torch.randn(5, 1)
    found = nm.MicroBatches(model, size)(x, scale=scale, twice=True)
    assert model.sizes == sizes
    expected = model(x, scale=scale, twice=True)
    assert_close(found, expected)


def test_a_packed_network_by_images():
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU()).eval()
    nm.prune(model, "2:4")
    x = torch.randn(3, 8, 9, 9)
    packed = nm.MicroBatches(nm.compress(model, x[:1], backend="native"))
    with torch.no_grad():
        assert_close(packed(x), model(x))
        assert_close(copy.deepcopy(packed)(x), model(x))
        assert_close(torch.compile(packed, fullgraph=True)(x), model(x))


@pytest.mark.parametrize("x", [(torch.ones(2, 4), torch.ones(3, 4)), (torch.tensor(1.0),), ()])
def test_arguments_without_a_batch(x):
    with pytest.raises(ValueError, match="one first dimension"):
        nm.MicroBatches(nn.Identity())(*x)


@pytest.mark.parametrize(
    ("result", "said"), [(lambda x: x.sum(), "shape"), (lambda x: {"n": len(x)}, "int")]
)
def test_results_that_cannot_be_joined(result, said):
    class Model(nn.Module):
        def forward(self, x: Tensor) -> object:
            return result(x)

    with pytest.raises(ValueError, match=said):
        nm.MicroBatches(Model())(torch.ones(2, 4))


def test_a_size_of_nothing():
    with pytest.raises(ValueError, match="size 0"):
        nm.MicroBatches(nn.Identity(), 0)
