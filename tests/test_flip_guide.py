"""The flip-rate guide: rates counted by hand, and one sentence about lambda_w."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import nmsparsity as nm
from nmsparsity.flip_guide import FlipRate, judge
from nmsparsity.integrations.lightning import SparsityCallback
from nmsparsity.targets import select
from tests.images import lightning_warnings
from tests.test_lightning import Module, data, trainer

pytestmark = lightning_warnings


def write(layer: nn.Linear, *row: float) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([row]))


def test_flips_of_a_window_by_hand() -> None:
    layer = nn.Linear(4, 1, bias=False)
    meter = FlipRate(select(layer, "2:4", include="*").targets, 1, 3)
    rows = [(4, 3, 2, 1), (1, 2, 3, 4), (4, 3, 2, 1), (4, 2, 3, 1), (1, 2, 3, 4)]
    ends = []
    for step, row in enumerate(rows):
        write(layer, *row)
        ends.append(meter.look(step))
        meter.look(step)
    # From step 1 to 2 all four change sides, from 2 to 3 two do.
    assert meter.rate == (4 + 2) / 8
    assert ends == [False, False, False, True, False]


def test_steps_that_were_not_seen_in_a_row_are_not_counted() -> None:
    layer = nn.Linear(4, 1, bias=False)
    meter = FlipRate(select(layer, "2:4", include="*").targets, 0, 4)
    for step, row in [(0, (4, 3, 2, 1)), (2, (1, 2, 3, 4)), (3, (1, 2, 3, 4))]:
        write(layer, *row)
        meter.look(step)
    assert meter.rate == 0.0


def test_the_masks_of_a_sparse_training_are_those_of_its_telemetry() -> None:
    torch.manual_seed(0)
    model = nn.Linear(32, 8)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    sparsifier = nm.sparsify(model, optimizer, "2:4", method="ste", include="*")
    meter = FlipRate(select(model, "2:4", include="*").targets, 0, 5)
    meter.look(0)
    flips = 0
    for step in range(1, 6):
        model.zero_grad()
        (model(torch.randn(4, 32)) - 1).square().mean().backward()
        optimizer.step()
        meter.look(step)
        flips += sparsifier.telemetry().sad
    assert flips > 0
    assert meter.rate == flips / (5 * 32 * 8)


@pytest.mark.parametrize(
    ("rate", "said"), [(1.5, "too weak"), (0.2, "freeze early"), (0.8, None), (1.0, None)]
)
def test_the_band(rate: float, said: str | None) -> None:
    found = judge(rate * 0.01, 0.01)
    assert (found is None) if said is None else (said in str(found))
    assert "do not flip" in str(judge(rate, 0.0))


@pytest.mark.parametrize("steps", [(3, 3), (-1, 2), (4, 1)])
def test_a_window_without_steps_is_refused(steps: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"flip_steps {steps[0]}, {steps[1]}: want two"):
        FlipRate([], *steps)


def test_the_callback_warns_once_where_lambda_is_far_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = SparsityCallback(method="dense", flip_steps=(2, 8))
    trainer(tmp_path, dense).fit(Module(), data())
    assert dense.flip_rate is not None
    assert dense.flip_rate > 0
    assert f"mean flip rate of steps 2 to 8: {dense.flip_rate:.3g}" in capsys.readouterr().out

    def fit(decay: float) -> list[str]:
        callback = SparsityCallback(
            method="sr_ste",
            method_options={"decay": decay},
            flip_steps=(2, 8),
            dense_flip_rate=dense.flip_rate,
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer(tmp_path, callback).fit(Module(), data())
        assert callback.state_dict()["flip_rate"] == callback.flip_rate
        return [str(w.message) for w in caught if "masks flip" in str(w.message)]

    (frozen,) = fit(10.0)
    assert "SparsityCallback, method 'sr_ste': masks flip 0." in frozen
    assert "try a tenth" in frozen


def test_a_dense_rate_needs_its_steps() -> None:
    with pytest.raises(ValueError, match=r"dense_flip_rate 0\.1 without flip_steps"):
        SparsityCallback(dense_flip_rate=0.1)
