"""What every training method owes its users, whatever it does inside a step."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import nmsparsity as nm

METHODS: dict[str, dict[str, Any]] = {
    "sr_ste": {"decay": 0.01},
    "sr_ste decoupled": {"decay": 0.01, "form": "decoupled", "warmup_steps": 4},
    "ste": {},
    "fixed": {},
    "step": {"total_steps": 12, "decay": 0.01},
    "s_ste": {},
    "gradual mask": {"steps": 6},
    "gradual count": {"form": "count", "steps": 6},
}
every = pytest.mark.parametrize("name", METHODS)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Linear(16, 4))


def pair(name: str, seed: int = 0, **form: bool):
    model = net(seed)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, betas=(0.9, 0.9), **form)
    method = name.split()[0]
    return model, optimizer, nm.sparsify(model, optimizer, "2:4", method=method, **METHODS[name])


def batches(count: int = 12) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 8, generator=g), torch.randn(16, 4, generator=g)) for _ in range(count)
    ]


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return ((model(batch[0]) - batch[1]) ** 2).mean()


def backward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    model.zero_grad()
    loss = loss_of(model, batch)
    loss.backward()
    return loss


def train(model: nn.Module, optimizer, data) -> None:
    for batch in data:
        backward(model, batch)
        optimizer.step()


def same(one: nn.Module, other: nn.Module, **close: float) -> None:
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert_close(mine, theirs, **(close or {"rtol": 0, "atol": 0}))


@every
@pytest.mark.parametrize("model_first", [True, False])
@pytest.mark.parametrize("done", [0, 3, 8])
def test_kill_and_resume_is_exact(name: str, model_first: bool, done: int) -> None:
    model, optimizer, sparsifier = pair(name)
    train(model, optimizer, batches()[:done])
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, batches()[done:])
    again, other, resumed = pair(name, seed=5)
    for load in (0, 1) if model_first else (1, 0):
        (again, other)[load].load_state_dict(saved[load])
    train(again, other, batches()[done:])
    same(again, model)
    with sparsifier.dense_weights(), resumed.dense_weights():
        same(again, model)
    assert resumed.steps == 12
    assert sparsifier.report().ok


@every
def test_a_checkpoint_loaded_before_sparsify(name: str) -> None:
    model, optimizer, _ = pair(name)
    train(model, optimizer, batches()[:8])
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, batches()[8:])
    again = net(5)
    other = torch.optim.AdamW(again.parameters(), 0.01, betas=(0.9, 0.9))
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    nm.sparsify(again, other, "2:4", method=name.split()[0], **METHODS[name])
    train(again, other, batches()[8:])
    same(again, model)


@every
def test_the_sparsifiers_own_state(name: str) -> None:
    model, optimizer, sparsifier = pair(name)
    train(model, optimizer, batches()[:8])
    state = copy.deepcopy(sparsifier.state_dict())
    _, _, other = pair(name, seed=5)
    other.load_state_dict(state)
    for mine, theirs in zip(other.weights().values(), sparsifier.weights().values(), strict=True):
        assert torch.equal(mine, theirs)


@every
def test_the_models_own_checkpoint_is_no_write(name: str) -> None:
    model, optimizer, _ = pair(name)
    other_model, other, _ = pair(name)
    for batch in batches():
        train(model, optimizer, [batch])
        model.load_state_dict(copy.deepcopy(model.state_dict()))
        train(other_model, other, [batch])
    same(model, other_model)


@every
def test_a_closure_changes_nothing(name: str) -> None:
    model, optimizer, _ = pair(name)
    closed, other, _ = pair(name)
    for batch in batches():
        train(model, optimizer, [batch])
        other.step(partial(backward, closed, batch))
    same(model, closed)


@every
def test_accumulation_is_the_larger_batch(name: str) -> None:
    model, optimizer, _ = pair(name)
    parts, other, _ = pair(name)
    for x, y in batches():
        train(model, optimizer, [(x, y)])
        parts.zero_grad()
        for half in zip(x.chunk(2), y.chunk(2), strict=True):
            (loss_of(parts, half) / 2).backward()
        other.step()
    same(model, parts, rtol=1e-4, atol=1e-5)


@every
@pytest.mark.parametrize("fused", [False, True])
def test_a_loss_scale_changes_nothing(name: str, fused: bool) -> None:
    model, optimizer, _ = pair(name, fused=fused)
    scaled, other, _ = pair(name, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for batch in batches():
        train(model, optimizer, [batch])
        scaled.zero_grad()
        scaler.scale(loss_of(scaled, batch)).backward()
        scaler.step(other)
        scaler.update()
    same(model, scaled, rtol=1e-5, atol=1e-6)


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_cast_model_goes_on(name: str, dtype: torch.dtype) -> None:
    model, optimizer, sparsifier = pair(name)
    train(model, optimizer, batches()[:3])
    dense = sparsifier.state_dict()["weights"]["0.weight"]["dense_weight"].clone()
    model.to(dtype)
    kept = sparsifier.state_dict()["weights"]["0.weight"]["dense_weight"]
    assert torch.equal(kept, dense.to(dtype))
    for state in optimizer.state.values():
        # Adam itself takes no gradient of another dtype than its moments.
        state.update({key: state[key].to(dtype) for key in ("exp_avg", "exp_avg_sq")})
    train(model, optimizer, [(x.to(dtype), y.to(dtype)) for x, y in batches()[3:]])
    assert sparsifier.report().ok


@every
def test_a_step_that_raises_loses_nothing(name: str) -> None:
    model, optimizer, sparsifier = pair(name)
    train(model, optimizer, batches()[:3])

    def broken() -> Tensor:
        raise RuntimeError("no batch")

    with pytest.raises(RuntimeError, match="no batch"):
        optimizer.step(broken)
    whole, other, _ = pair(name)
    train(whole, other, batches())
    train(model, optimizer, batches()[3:])
    same(model, whole)
    assert sparsifier.report().ok


@every
def test_an_average_of_dense_weights_can_be_made_what_the_model_is(name: str) -> None:
    model, optimizer, sparsifier = pair(name)
    train(model, optimizer, batches())
    with sparsifier.dense_weights():
        average = copy.deepcopy(model)
    sparsifier.project_(average)
    same(average, model)


@every
def test_remove_lets_the_model_go(name: str) -> None:
    model, optimizer, sparsifier = pair(name)
    train(model, optimizer, batches())
    sparsifier.remove()
    train(model, optimizer, batches()[:1])
    assert not nm.verify(model, "2:4").ok
