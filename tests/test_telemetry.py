"""Telemetry: the paper's SAD and what goes with it, counted by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import nmsparsity as nm
from nmsparsity.telemetry import Change, Snapshot, Telemetry, Watch


@dataclass
class Held:
    """A mask that the test writes."""

    mask: Tensor
    name: str = "layer.weight"
    pattern: nm.Pattern = field(default_factory=lambda: nm.Pattern(2, 4))
    layout: nm.Layout = field(default_factory=nm.Layout)
    rest: float = 0.0

    def current_mask(self) -> Tensor:
        return self.mask


def rows(*text: str) -> Tensor:
    """``"1100 0011"`` as a bool row."""
    return torch.tensor([[c == "1" for c in line.replace(" ", "")] for line in text])


# Snapshots.


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 5), max_size=4), st.integers(0, 2**31))
def test_snapshots_count_what_differs(shape: list[int], seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    one = torch.rand(shape, generator=g) < 0.5
    other = torch.rand(shape, generator=g) < 0.5
    before, after = Snapshot.of(one), Snapshot.of(other)
    assert before.sad(after) == after.sad(before) == int((one != other).sum())
    assert before.sad(before) == 0
    assert before.kept == int(one.sum())
    assert torch.equal(before.flips(after), one != other)


def test_a_snapshot_takes_a_bit_a_weight_and_does_not_change_with_the_mask() -> None:
    mask = torch.zeros(64, 64, dtype=torch.bool)
    snapshot = Snapshot.of(mask)
    assert snapshot.bits.nbytes == 64 * 64 // 8
    mask.fill_(True)
    assert snapshot.kept == 0


def test_the_memory_format_of_a_mask_does_not_matter() -> None:
    mask = torch.rand(4, 4, 3, 3) < 0.5
    last = mask.to(memory_format=torch.channels_last)
    assert Snapshot.of(mask).sad(Snapshot.of(last)) == 0


# Looks.


def test_a_look_by_hand() -> None:
    held = Held(rows("1100 1100", "1100 1100"))
    watch = Watch([held])
    held.mask = rows("1010 1100", "0011 0110")
    seen = watch.look(5)
    (row,) = seen.rows
    assert row.name == "layer.weight"
    assert (row.size, row.sad, row.density) == (16, 2 + 0 + 4 + 2, 0.5)
    assert row.sad_normalized == 8 / 16
    assert row.groups_changed == 3 / 4
    assert row.flip_rate is None
    assert (seen.steps, seen.step) == (5, 5)
    assert (seen.sad, seen.size, seen.sad_normalized, seen.density) == (8, 16, 0.5, 0.5)


def test_the_next_look_starts_where_the_last_one_ended() -> None:
    held = Held(rows("1100"))
    watch = Watch([held])
    held.mask = rows("0011")
    assert watch.look(3).sad == 4
    seen = watch.look(7)
    assert (seen.sad, seen.steps, seen.step) == (0, 4, 7)


def test_sad_is_between_two_points_and_not_a_sum_over_steps() -> None:
    held = Held(rows("1100"))
    watch = Watch([held])
    for text in ("0011", "1100", "1010"):
        watch.before_step()
        held.mask = rows(text)
        watch.after_step()
    assert watch.look(3).sad == 2


def test_the_flip_rate_is_that_of_one_step_after_the_look() -> None:
    held = Held(rows("1100"))
    watch = Watch([held])
    watch.before_step()
    held.mask = rows("1010")
    watch.after_step()
    watch.before_step()
    held.mask = rows("0101")
    watch.after_step()
    seen = watch.look(2)
    assert seen.rows[0].flip_rate == seen.flip_rate == 2 / 4
    assert watch.look(2).flip_rate is None
    watch.before_step()
    watch.after_step()
    assert watch.look(3).flip_rate == 0.0


def test_groups_of_the_kernel_axis_and_short_groups() -> None:
    first = torch.zeros(1, 2, 1, 3, dtype=torch.bool)
    held = Held(first, pattern=nm.Pattern(1, 4, "kernel"))
    watch = Watch([held])
    held.mask = first.clone()
    held.mask[0, 1, 0, 2] = True
    assert watch.look(1).rows[0].groups_changed == 1 / 2


def test_totals_weigh_layers_by_their_size() -> None:
    small = Change("a", 4, 4, 1.0, 0.5, 1.0)
    large = Change("b", 12, 0, None, 0.25, 0.0)
    seen = Telemetry([small, large], 10, 20)
    assert (seen.sad, seen.size, seen.sad_normalized) == (4, 16, 0.25)
    assert seen.density == pytest.approx((0.5 * 4 + 0.25 * 12) / 16)
    assert seen.flip_rate == 1.0


def test_without_weights_there_is_nothing_to_divide() -> None:
    seen = Watch([]).look(3)
    assert (seen.sad, seen.sad_normalized, seen.density, seen.flip_rate) == (0, 0.0, 1.0, None)
    assert "in 3 steps" in str(seen)
    empty = Watch([Held(torch.zeros(0, 4, dtype=torch.bool))])
    empty.before_step()
    empty.after_step()
    row = empty.look(1).rows[0]
    assert (row.sad_normalized, row.flip_rate, row.groups_changed) == (0.0, None, 0.0)


def test_the_table_by_hand() -> None:
    seen = Telemetry(
        [Change("a", 4000, 1000, 0.125, 0.5, 0.25), Change("bb", 4, 0, None, 0.25, 0.0)], 10, 30
    )
    assert str(seen).splitlines() == [
        "weight  elements    SAD   SAD/n  flip rate  density  groups changed",
        "------  --------  -----  ------  ---------  -------  --------------",
        "a          4,000  1,000  0.2500    0.12500    0.500           25.0%",
        "bb             4      0  0.0000          -    0.250            0.0%",
        "in 10 steps, up to step 30",
    ]


# In training.


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 2))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for seed in range(steps):
        g = torch.Generator().manual_seed(seed)
        optimizer.zero_grad()
        model(torch.randn(8, 16, generator=g)).pow(2).mean().backward()
        optimizer.step()


def test_training_against_masks_compared_one_by_one() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    sparsifier = nm.sparsify(model, optimizer, {"0": "2:4", "2": "1:4"})
    masks = [model[0].weight != 0, model[2].weight != 0]
    train(model, optimizer, 1)
    after_one = [model[0].weight != 0, model[2].weight != 0]
    train(model, optimizer, 20)
    now = [model[0].weight != 0, model[2].weight != 0]
    seen = sparsifier.telemetry()
    for row, before, one, after in zip(seen.rows, masks, after_one, now, strict=True):
        assert row.sad == int((before != after).sum())
        assert row.flip_rate == int((before != one).sum()) / 256
        changed = (before != after).reshape(16, 4, 4).any(dim=2)
        assert row.groups_changed == float(changed.double().mean())
    assert [row.density for row in seen.rows] == [0.5, 0.25]
    assert seen.sad > 0
    assert (seen.steps, seen.step) == (21, 21)
    assert sparsifier.telemetry().sad == 0


def test_a_fixed_mask_has_no_sad() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
    sparsifier = nm.sparsify(model, optimizer, "2:4", method="fixed")
    train(model, optimizer, 10)
    seen = sparsifier.telemetry()
    assert (seen.sad, seen.flip_rate, seen.steps) == (0, 0.0, 10)


def test_looking_does_not_change_the_training() -> None:
    models = []
    for looks in (False, True):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        sparsifier = nm.sparsify(model, optimizer, "2:4")
        for _ in range(5):
            train(model, optimizer, 3)
            if looks:
                sparsifier.telemetry()
        models.append(model)
    assert torch.equal(models[0][0].weight, models[1][0].weight)


def test_zeros_in_the_dense_weight_are_still_kept_by_the_mask() -> None:
    """Density is that of the mask: exactly N of every M, also of zeros."""
    model = mlp()
    with torch.no_grad():
        model[0].weight.zero_()
    sparsifier = nm.sparsify(model, torch.optim.SGD(model.parameters(), 0.1), "2:4")
    assert sparsifier.telemetry().rows[0].density == 0.5
    assert sparsifier.report().rows[0].density == 0.0


def test_going_back_to_an_earlier_checkpoint_is_no_negative_number_of_steps() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier = nm.sparsify(model, optimizer, "2:4")
    saved = optimizer.state_dict()
    train(model, optimizer, 5)
    sparsifier.telemetry()
    optimizer.load_state_dict(saved)
    assert sparsifier.telemetry().steps >= 0


# Interruptions.


def test_a_watch_goes_on_from_the_last_look_before_an_interruption() -> None:
    before, after = rows("1100 0011"), rows("0110 0011")
    first = Watch([Held(before)])
    first.look(5)
    resumed = Watch([Held(after)])
    resumed.resume(first.state())
    seen = resumed.look(8)
    assert (seen.sad, seen.steps, seen.step) == (2, 3, 8)


def test_a_look_at_other_masks_is_not_gone_on_from() -> None:
    other = Watch([Held(torch.ones(9, 8, dtype=torch.bool))])
    watch = Watch([Held(rows("1100 0011"))])
    watch.resume(other.state())
    watch.resume(Watch([Held(rows("0011 1100"), name="another")]).state())
    assert watch.look(3).sad == 0
