"""S-STE: the soft threshold by hand, and training against a plain reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close

import nmsparsity as nm

W = torch.tensor([[4.0, -3.0, 2.0, 1.0], [-1.0, 0.5, 0.0, 8.0]])
# The largest pruned magnitude, 2 and 0.5, is taken from the kept ones.
SOFT = torch.tensor([[2.0, -1.0, 0.0, 0.0], [-0.5, 0.0, 0.0, 7.5]])
BETA = float((W * SOFT).sum() / (SOFT * SOFT).sum())


def soft(weight: Tensor, n: int, m: int) -> Tensor:
    """The soft threshold of arXiv 2409.09099 for any n, one group after the other."""
    groups = []
    for group in weight.reshape(-1, m).tolist():
        threshold = sorted((abs(x) for x in group), reverse=True)[n] if n < m else 0.0
        groups.append(
            [(x > 0) * max(x - threshold, 0) - (x < 0) * max(-x - threshold, 0) for x in group]
        )
    return torch.tensor(groups, dtype=weight.dtype).reshape(weight.shape)


def layer_of(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def s_ste(model: nn.Module, optimizer=None, pattern: str = "2:4", **options):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.1)
    return optimizer, nm.sparsify(model, optimizer, pattern, method="s_ste", include="*", **options)


def test_the_soft_threshold_by_hand() -> None:
    layer = layer_of(W)
    _, sparsifier = s_ste(layer)
    assert_close(layer.weight.detach(), BETA * SOFT)
    state = sparsifier.state_dict()["weights"]["weight"]
    assert state["own_scale"] == pytest.approx(BETA)
    assert_close(state["dense_weight"], W, rtol=0, atol=0)


def test_the_gradient_goes_to_the_dense_weight_as_it_is_and_the_scale_stays() -> None:
    layer = layer_of(W)
    optimizer, sparsifier = s_ste(layer)
    layer.weight.grad = torch.ones(2, 4)
    optimizer.step()
    assert_close(sparsifier.state_dict()["weights"]["weight"]["dense_weight"], W - 0.1)
    assert_close(layer.weight.detach(), BETA * soft(W - 0.1, 2, 4))


def test_it_is_continuous_where_a_mask_jumps() -> None:
    """Two weights change places: the sparse weights just before and after are the same."""
    before, after = (
        layer_of(torch.tensor([[5.0, 1.0, 1.0 + shift, 0.0]])) for shift in (-1e-6, 1e-6)
    )
    s_ste(before)
    s_ste(after)
    assert_close(before.weight.detach(), after.weight.detach(), rtol=0, atol=1e-5)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.sampled_from([(1, 4), (2, 4), (3, 4), (2, 8), (1, 16)]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.integers(0, 2**31),
)
def test_any_pattern_is_the_plain_soft_threshold(nm_: tuple[int, int], dtype, seed: int) -> None:
    n, m = nm_
    weight = torch.randn(3, 32, generator=torch.Generator().manual_seed(seed)).to(dtype)
    layer = layer_of(weight).to(dtype)
    _, sparsifier = s_ste(layer, pattern=f"{n}:{m}")
    wanted = soft(weight, n, m)
    wide = weight.float(), wanted.float()
    beta = float((wide[0] * wide[1]).sum() / (wide[1] * wide[1]).sum())
    assert_close(layer.weight.detach(), wanted * beta)
    assert sparsifier.report().ok


@pytest.mark.parametrize("axis", ["input", "kernel"])
def test_convolutions_on_both_axes(axis: str) -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(8, 4, 3)
    weight = model.weight.detach().clone()
    s_ste(model, axis=axis)
    rows = weight.permute(0, 2, 3, 1) if axis == "input" else weight
    wanted = soft(rows.contiguous(), 2, 4)
    wanted = wanted.permute(0, 3, 1, 2) if axis == "input" else wanted
    beta = float((weight * wanted).sum() / (wanted * wanted).sum())
    assert_close(model.weight.detach(), beta * wanted)


def test_ties_and_zeros_have_no_scale_to_fit() -> None:
    layer = layer_of(torch.ones(2, 4))
    optimizer, sparsifier = s_ste(layer)
    assert not layer.weight.detach().any()
    assert sparsifier.state_dict()["weights"]["weight"]["own_scale"] == 1.0
    layer.weight.grad = torch.tensor([[-1.0, 0.0, 0.0, 0.0]]).expand(2, 4).clone()
    optimizer.step()
    assert_close(layer.weight.detach()[:, 0], torch.full((2,), 0.1))


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    lambda p: torch.optim.AdamW(p, 0.01),
    lambda p: torch.optim.AdamW(p, 0.01, fused=True),
])  # fmt: skip
def test_a_training_follows_the_plain_reference(make) -> None:
    def net() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))

    model, book = net(), net()
    optimizer, sparsifier = s_ste(model, make(model.parameters()))
    other = make(book.parameters())
    sparse = {"0.weight", "2.weight"}
    named = dict(book.named_parameters())
    start = {
        name: (w.detach(), soft(w.detach(), 2, 4)) for name, w in named.items() if name in sparse
    }
    betas = {name: (w * s).sum() / (s * s).sum() for name, (w, s) in start.items()}
    g = torch.Generator().manual_seed(1)
    flips = 0
    for _ in range(12):
        x, y = torch.randn(16, 8, generator=g), torch.randn(16, 4, generator=g)
        leaves = {name: w.detach().clone() for name, w in named.items()}
        leaves.update({name: betas[name] * soft(leaves[name], 2, 4) for name in sparse})
        leaves = {name: w.requires_grad_() for name, w in leaves.items()}
        ((functional_call(book, leaves, (x,)) - y) ** 2).mean().backward()
        for name, w in named.items():
            w.grad = leaves[name].grad
        other.step()
        optimizer.zero_grad()
        ((model(x) - y) ** 2).mean().backward()
        optimizer.step()
        flips += sparsifier.telemetry().sad
    assert flips > 0
    with sparsifier.dense_weights():
        for mine, theirs in zip(model.parameters(), book.parameters(), strict=True):
            assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_written_weights_are_a_new_start_with_a_new_scale() -> None:
    """Trained sparse weights that are loaded stay what they are: their threshold is 0."""
    layer, trained = layer_of(W), torch.tensor([[2.0, -1.0, 0.0, 0.0], [0.0, 3.0, 0.0, 7.5]])
    optimizer, sparsifier = s_ste(layer)
    layer.load_state_dict({"weight": trained})
    layer.weight.grad = torch.zeros(2, 4)
    optimizer.step()
    assert_close(layer.weight.detach(), trained)
    assert sparsifier.state_dict()["weights"]["weight"]["own_scale"] == pytest.approx(1.0)


def test_a_checkpoint_keeps_the_scale() -> None:
    layer = layer_of(W)
    optimizer, _ = s_ste(layer)
    layer.weight.grad = torch.full((2, 4), 3.0)
    optimizer.step()
    again = layer_of(-W)
    other, resumed = s_ste(again)
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(again.weight, layer.weight)
    assert resumed.state_dict()["weights"]["weight"]["own_scale"] == pytest.approx(BETA)
