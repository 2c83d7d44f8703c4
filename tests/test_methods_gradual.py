"""Gradual: both schedules by hand, training against a plain reference, and honest reports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import nmsparsity as nm
from nmsparsity.methods import Gradual

W = torch.tensor([[4.0, -3.0, 2.0, 1.0], [-1.0, 0.5, 0.0, 8.0]])
E = torch.tensor([[True, True, False, False], [True, False, False, True]])


def layer_and(pattern: str = "2:4", lr: float = 0.1, weight: Tensor = W, **options):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    optimizer = torch.optim.SGD(layer.parameters(), lr)
    how = Gradual(**options)
    return layer, optimizer, nm.sparsify(layer, optimizer, pattern, method=how, include="*")


def step(layer: nn.Linear, optimizer, grad: float = 0.0) -> None:
    layer.weight.grad = torch.full_like(layer.weight, grad)
    optimizer.step()


def test_the_mask_falls_linearly_by_hand() -> None:
    layer, optimizer, _ = layer_and(steps=4)
    for rest in (1.0, 0.75, 0.5, 0.25, 0.0, 0.0):
        assert_close(layer.weight.detach(), torch.where(E, W, rest * W))
        step(layer, optimizer)


def test_the_mask_falls_exponentially_to_one_percent_and_then_to_zero() -> None:
    layer, optimizer, _ = layer_and(steps=4, curve="exponential")
    for rest in (1.0, 0.01**0.25, 0.1, 0.01**0.75, 0.0):
        assert_close(layer.weight.detach(), torch.where(E, W, rest * W))
        step(layer, optimizer)


def test_a_pruned_weight_learns_as_much_as_it_counts() -> None:
    """W~ = (E + rest (1 - E)) W, differentiated."""
    layer, optimizer, sparsifier = layer_and(steps=2, lr=0.01)
    step(layer, optimizer)
    step(layer, optimizer, grad=1.0)
    step(layer, optimizer, grad=1.0)
    wanted = W - 0.01 * torch.where(E, 1.0, 0.5) - 0.01 * torch.where(E, 1.0, 0.0)
    assert_close(sparsifier.state_dict()["weights"]["weight"]["dense_weight"], wanted)


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        ("2:4", [3, 3, 3, 3, 3, 3, 2]),
        ("1:4", [3, 3, 3, 2, 2, 2, 1]),
        ("1:8", [7, 7, 4, 4, 2, 2, 1]),
        ("3:8", [7, 7, 7, 4, 4, 4, 3]),
        ("3:4", [3, 3, 3, 3, 3, 3, 3]),
    ],
)
def test_fewer_and_fewer_are_kept_for_equal_times(pattern: str, kept: list[int]) -> None:
    weight = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    layer, optimizer, sparsifier = layer_and(pattern, weight=weight, form="count", steps=6)
    m = nm.Pattern.parse(pattern).m
    for count in kept:
        wanted = weight * nm.Pattern(count, m).mask(weight.abs())
        assert torch.equal(layer.weight.detach(), wanted)
        assert sparsifier.telemetry().density == count / m
        step(layer, optimizer)


def test_the_count_form_gives_the_gradient_unmasked() -> None:
    layer, optimizer, sparsifier = layer_and(form="count", steps=2, lr=0.01)
    for _ in range(3):
        step(layer, optimizer, grad=1.0)
    assert_close(sparsifier.state_dict()["weights"]["weight"]["dense_weight"], W - 0.03)


def test_dense_steps_come_first() -> None:
    for form, first in (("mask", 1.0), ("count", 1.0)):
        layer, optimizer, sparsifier = layer_and(form=form, start_steps=2, steps=2)
        for _ in range(2):
            assert torch.equal(layer.weight.detach(), W)
            assert sparsifier.telemetry().density == first
            step(layer, optimizer)


@pytest.mark.parametrize("form", ["mask", "count"])
def test_until_the_end_reports_say_what_is_missing(form: str, tmp_path: Path) -> None:
    layer, optimizer, sparsifier = layer_and(form=form, steps=4)
    step(layer, optimizer)
    for report in (sparsifier.report(), nm.verify(layer)):
        assert not report.ok
        now = "pruned weights count 0.75" if form == "mask" else "3:4"
        assert f"method 'gradual' is at {now} after 1 steps; 2:4 from step 4 on" in report.summary
    assert sparsifier.telemetry().density == (1.0 if form == "mask" else 0.75)
    with pytest.raises(ValueError, match="weight: method 'gradual' is at"):
        nm.save(layer, tmp_path / "model.safetensors")
    for _ in range(3):
        step(layer, optimizer)
    assert sparsifier.report().ok
    assert sparsifier.telemetry().density == 0.5
    nm.save(layer, tmp_path / "model.safetensors")


@pytest.mark.parametrize("form", ["mask", "count"])
def test_the_schedule_takes_half_of_the_training_unless_told(form: str) -> None:
    layer, optimizer, sparsifier = layer_and(form=form)
    with pytest.raises(ValueError, match=r"method 'gradual' needs to know how long"):
        step(layer, optimizer)
    sparsifier.plan(8)
    for _ in range(3):
        step(layer, optimizer)
    assert not sparsifier.report().ok
    step(layer, optimizer)
    assert sparsifier.report().ok


def test_an_option_wins_over_the_plan() -> None:
    layer, optimizer, sparsifier = layer_and(form="count", total_steps=4)
    sparsifier.plan(1000)
    step(layer, optimizer)
    step(layer, optimizer)
    assert sparsifier.report().ok


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"form": "soft"}, "form 'soft': want 'mask' or 'count'"),
        ({"curve": "cubic"}, "curve 'cubic' of form 'mask'"),
        ({"form": "count", "curve": "linear"}, "curve 'linear' of form 'count'"),
        ({"steps": 0}, "start_steps 0, steps 0: want"),
        ({"start_steps": -1}, "start_steps -1"),
    ],
)
def test_wrong_options(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Gradual(**options)  # type: ignore[arg-type]
