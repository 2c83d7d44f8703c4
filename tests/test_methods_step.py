"""STEP: phases, AutoSwitch and frozen second moments, against the paper written down plainly."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import nmsparsity as nm
from nmsparsity.methods import STEP
from nmsparsity.methods.step import AutoSwitch
from tests.adam_paper import Step as Paper

FORMS = [{"foreach": False}, {"foreach": True}, {"fused": True}]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 8, generator=g), torch.randn(16, 4, generator=g)) for _ in range(count)
    ]


def backward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    model.zero_grad()
    ((model(batch[0]) - batch[1]) ** 2).mean().backward()


def sparsified(model: nn.Module, kind: type = torch.optim.Adam, **options):
    form = {name: options.pop(name) for name in ("foreach", "fused") if name in options}
    optimizer = kind(model.parameters(), 0.01, betas=(0.9, 0.9), weight_decay=0.1, **form)
    sparsifier = nm.sparsify(model, optimizer, "2:4", method="step", include="*", **options)
    return optimizer, sparsifier


def course(sparsifier: nm.Sparsifier) -> AutoSwitch:
    found = sparsifier._hooks.course
    assert isinstance(found, AutoSwitch)
    return found


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("form", FORMS, ids=["plain", "foreach", "fused"])
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_both_phases_are_the_papers(kind: type, form: dict[str, bool], decay: float) -> None:
    model = net()
    # The parameters in order: weight, bias, weight, bias.
    book = Paper(
        [p.detach().clone() for p in model.parameters()],
        {0: (2, 4), 2: (2, 4)},
        lr=0.01,
        betas=(0.9, 0.9),
        eps=1e-8,
        weight_decay=0.1,
        decoupled=kind is torch.optim.AdamW,
        window=10,
        earliest=2,
        latest=8,
        threshold=1e-8,
        decay=decay,
    )
    optimizer, sparsifier = sparsified(model, kind, total_steps=16, latest=0.5, decay=decay, **form)
    twin = net()
    for count, batch in enumerate(batches(16)):
        with torch.no_grad():
            for parameter, value in zip(twin.parameters(), book.effective(), strict=True):
                parameter.copy_(value)
        for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            assert_close(mine, theirs, rtol=1e-4, atol=1e-6, msg=f"after {count} steps")
        backward(twin, batch)
        book.step([p.grad for p in twin.parameters()])
        backward(model, batch)
        optimizer.step()
    assert course(sparsifier).switched_at == book.switched_at == 8
    assert sparsifier.report().ok
    dense = [p.detach().clone() for p in model.parameters()]
    with sparsifier.dense_weights() as weights:
        dense[0], dense[2] = (w.detach().clone() for w in weights.values())
    for mine, theirs in zip(dense, book.parameters, strict=True):
        assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_the_update_with_frozen_moments_by_hand() -> None:
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[4.0, -3.0, 2.0, 1.0]]))
    optimizer = torch.optim.Adam(layer.parameters(), 0.1, betas=(0.5, 0.9), eps=0.0)
    nm.sparsify(layer, optimizer, "2:4", method="step", include="*", total_steps=2, latest=0.5)
    layer.weight.grad = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    optimizer.step()
    # v / (1 - beta2) is the square of the first gradient, and the first step is lr * sign.
    assert_close(optimizer.state[layer.weight]["exp_avg_sq"], torch.tensor([[1.0, 4.0, 9.0, 16.0]]))
    assert_close(layer.weight.detach(), torch.tensor([[3.9, -3.1, 0.0, 0.0]]))
    layer.weight.grad = torch.tensor([[10.0, 0.0, 0.0, 0.0]])
    optimizer.step()
    # m = 0.5 * 0.5 g1 + 0.5 g2, corrected by 1 - 0.25; v* is that of before, whatever g2.
    first = (0.25 * torch.tensor([1.0, 2.0, 3.0, 4.0]) + 0.5 * torch.tensor([10.0, 0, 0, 0])) / 0.75
    dense = torch.tensor([3.9, -3.1, 1.9, 0.9]) - 0.1 * first / torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert_close(layer.weight.detach()[0, :2], dense[:2])
    assert_close(optimizer.state[layer.weight]["exp_avg_sq"], torch.tensor([[1.0, 4.0, 9.0, 16.0]]))


def test_a_parameter_that_learns_only_after_the_switch_gets_its_own_frozen_moment() -> None:
    layer = nn.Linear(4, 1)
    optimizer = torch.optim.Adam(layer.parameters(), 0.1, betas=(0.0, 0.999), eps=0.0)
    nm.sparsify(layer, optimizer, "2:4", method="step", include="*", total_steps=2, latest=0.5)
    layer.weight.grad = torch.ones(1, 4)
    optimizer.step()
    for expected in (0.1, 0.2):
        before = layer.bias.detach().clone()
        layer.bias.grad = torch.tensor([2.0 * expected / 0.1])
        optimizer.step()
        # v* is the square of its first gradient, 2: the second one, 4, moves it twice as far.
        assert_close(before - layer.bias.detach(), torch.tensor([expected]))


@pytest.mark.parametrize(("threshold", "at"), [(1e9, 2), (0.0, 10)])
def test_the_switch_is_clipped_to_its_shares(threshold: float, at: int) -> None:
    model = net()
    optimizer, sparsifier = sparsified(model, total_steps=20, threshold=threshold)
    for batch in batches(12):
        backward(model, batch)
        optimizer.step()
    assert course(sparsifier).switched_at == at


def test_z_is_the_mean_change_of_the_second_moments() -> None:
    layer = nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.Adam(layer.parameters(), 0.0, betas=(0.9, 0.5))
    sparsifier = nm.sparsify(
        layer, optimizer, "2:4", method="step", include="*", total_steps=100, mean="arithmetic"
    )
    for grad in (2.0, 0.0):
        layer.weight.grad = torch.tensor([[grad, 0.0, 0.0, grad]])
        optimizer.step()
    # v: 0 -> 2 -> 1 for two elements of four.
    assert course(sparsifier).changes == [1.0, 0.5]


def test_the_geometric_mean_is_that_of_what_changed() -> None:
    layer = nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.Adam(layer.parameters(), 0.0, betas=(0.9, 0.5))
    sparsifier = nm.sparsify(
        layer, optimizer, "2:4", method="step", include="*", total_steps=100, mean="geometric"
    )
    layer.weight.grad = torch.tensor([[2.0, 0.0, 0.0, 4.0]])
    optimizer.step()
    layer.weight.grad = torch.zeros(1, 4)
    with torch.no_grad():
        optimizer.state[layer.weight]["exp_avg_sq"].zero_()
    optimizer.step()
    assert course(sparsifier).changes == pytest.approx([4.0, 0.0])


@pytest.mark.parametrize(("beta2", "steps"), [(0.999, 1000), (0.98, 50), (0.9, 10), (0.0, 1)])
def test_the_window_is_that_of_beta2(beta2: float, steps: int) -> None:
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(2, 2))], betas=(0.9, beta2))
    assert AutoSwitch(STEP(), optimizer).window == steps


def test_phase_one_is_dense_adam_and_says_so(tmp_path) -> None:
    model, plain = net(), net()
    optimizer, sparsifier = sparsified(model, total_steps=100)
    other = torch.optim.Adam(plain.parameters(), 0.01, betas=(0.9, 0.9), weight_decay=0.1)
    for batch in batches(3):
        for network, its in ((model, optimizer), (plain, other)):
            backward(network, batch)
            its.step()
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert sparsifier.telemetry().density == 1.0
    for report in (sparsifier.report(), nm.verify(model)):
        assert not report.ok
        assert [row.density for row in report.sparse] == [1.0, 1.0]
        assert "'step' is in its dense phase after 3 steps" in report.summary
        assert "at step 50 (50% of the training) at the latest" in report.summary
    with pytest.raises(ValueError, match="'step' is in its dense phase after 3 steps"):
        nm.save(model, tmp_path / "model.safetensors")


@pytest.mark.parametrize("at", [2, 6])
def test_kill_and_resume_in_either_phase_is_exact(at: int) -> None:
    model = net()
    optimizer, sparsifier = sparsified(model, total_steps=8)
    for count, batch in enumerate(batches(10)):
        if count == at:
            saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        backward(model, batch)
        optimizer.step()
    again = net()
    other, resumed = sparsified(again)
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    for batch in batches(10)[at:]:
        backward(again, batch)
        other.step()
    assert course(resumed).switched_at == course(sparsifier).switched_at == 4
    for mine, theirs in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("at", [1, 5])
def test_a_step_that_loss_scaling_skips_leaves_no_trace(fused: bool, at: int) -> None:
    """Under a GradScaler a fused optimizer is called even for infinite gradients."""
    ends = []
    for broken in (False, True):
        model = net()
        optimizer, _ = sparsified(model, total_steps=8, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10**6)
        for count, (inputs, wanted) in enumerate(batches(7)):
            if broken and count == at:
                optimizer.zero_grad()
                scaler.scale(model(inputs * float("inf")).sum()).backward()
                scaler.step(optimizer)
                scaler.update(1024.0)
            optimizer.zero_grad()
            scaler.scale(((model(inputs) - wanted) ** 2).mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        ends.append([p.detach().clone() for p in model.parameters()])
        switched = optimizer.state_dict()["param_groups"][0]["sparsity_switched_at"]
        assert switched in (4, 5)
    if at == 5 or not fused:
        # A fused step counts as one even when it is skipped, and brings the switch on sooner.
        for mine, theirs in zip(*ends, strict=True):
            assert torch.equal(mine, theirs)


def test_a_closure_changes_nothing() -> None:
    ends = []
    for closed in (False, True):
        model = net()
        optimizer, _ = sparsified(model, total_steps=8)
        for batch in batches(8):
            if closed:
                optimizer.step(partial(backward, model, batch))
            else:
                backward(model, batch)
                optimizer.step()
        ends.append([p.detach().clone() for p in model.parameters()])
    for mine, theirs in zip(*ends, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: torch.optim.SGD(p, 0.1), "got SGD; take one of those"),
        (lambda p: torch.optim.NAdam(p), "got NAdam"),
        (lambda p: torch.optim.Adam(p, amsgrad=True), "got Adam with amsgrad"),
    ],
)
def test_other_optimizers_are_refused_before_anything_changes(make, said: str) -> None:
    model = net()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=said):
        nm.sparsify(model, make(model.parameters()), "2:4", method="step", include="*")
    for mine, theirs in zip(model.parameters(), before, strict=True):
        assert torch.equal(mine, theirs)
    nm.sparsify(model, torch.optim.Adam(model.parameters()), "2:4", method="ste", include="*")


def test_the_length_of_the_training_is_asked_for_at_the_first_step() -> None:
    model = net()
    optimizer, sparsifier = sparsified(model)
    backward(model, batches(1)[0])
    with pytest.raises(ValueError, match=r"method 'step' needs to know how long the training is"):
        optimizer.step()
    sparsifier.plan(2)
    optimizer.step()
    assert course(sparsifier).switched_at == 1
    assert sparsifier.report().ok


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mean": "median"}, "mean 'median': want 'arithmetic' or 'geometric'"),
        ({"earliest": 0.6}, "earliest 0.6, latest 0.5: want shares"),
        ({"decay": -1.0}, "decay -1.0: want a number, 0 or more"),
        ({"threshold": float("nan")}, "threshold nan"),
    ],
)
def test_wrong_options(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        STEP(**options)  # type: ignore[arg-type]


def test_a_training_of_no_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="total_steps 0: want 1 or more"):
        sparsified(net(), total_steps=0)
