"""Every optimizer that torch has: sparse all along, and resumed bit by bit, in both orders."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.testing import assert_close

import nmsparsity as nm

KINDS = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
}
# It takes sparse gradients alone, of embeddings.
del KINDS["SparseAdam"]


def build(name: str, seed: int) -> tuple[nn.Module, Optimizer, nm.Sparsifier]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
    parameters = [p for p in model.parameters() if p.dim() == 2 or name != "Muon"]
    optimizer = KINDS[name](parameters, lr=0.01)
    return model, optimizer, nm.sparsify(model, optimizer, "2:4")


def train(model: nn.Module, optimizer: Optimizer, first: int) -> None:
    for seed in range(first, first + 3):
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))

        def closure(x: torch.Tensor = x) -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)


@pytest.mark.parametrize("model_first", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_sparse_and_resumed(name: str, model_first: bool) -> None:
    model, optimizer, sparsifier = build(name, 0)
    train(model, optimizer, 0)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    with sparsifier.dense_weights() as dense:
        assert all(bool((weight != 0).all()) for weight in dense.values())
    train(model, optimizer, 3)
    assert nm.verify(model).ok

    again, again_optimizer, _ = build(name, 1)
    if model_first:
        again.load_state_dict(saved[0])
    again_optimizer.load_state_dict(saved[1])
    if not model_first:
        again.load_state_dict(saved[0])
    train(again, again_optimizer, 3)
    assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
