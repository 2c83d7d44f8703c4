"""Training methods: every moment by hand, one small weight at a time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import nmsparsity as nm
from nmsparsity.methods import (
    SRSTE,
    STE,
    Dense,
    Fixed,
    Method,
    Stage,
    Step,
    Weight,
    build,
    method,
)
from nmsparsity.methods import methods as known

W = torch.tensor([[4.0, -3.0, 2.0, 1.0], [-1.0, 0.5, 0.0, 8.0]])
E = torch.tensor([[True, True, False, False], [True, False, False, True]])


@pytest.fixture
def layer() -> nn.Linear:
    linear = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(W)
    return linear


@pytest.fixture
def registered() -> Iterator[list[str]]:
    """Names to be forgotten again after the test."""
    names: list[str] = []
    yield names
    for name in names:
        known._things.pop(name, None)


def one_step(
    layer: nn.Linear, grad: Tensor, how: str | Method, lr: float = 0.1, **options
) -> Tensor:
    """Dense weight after one step of plain SGD with this gradient."""
    optimizer = torch.optim.SGD(layer.parameters(), lr)
    sparsifier = nm.sparsify(layer, optimizer, "2:4", method=how, **options)
    assert_close(layer.weight.detach(), W * E, rtol=0, atol=0)
    layer.weight.grad = grad.clone()
    optimizer.step()
    assert sparsifier.report().ok
    return sparsifier.state_dict()["weights"]["weight"]["dense_weight"].clone()


def test_ste_gives_the_gradient_unmasked_to_the_dense_weight(layer: nn.Linear) -> None:
    grad = torch.ones(2, 4)
    assert_close(one_step(layer, grad, "ste"), W - 0.1)


def test_sr_ste_pulls_pruned_weights_to_zero(layer: nn.Linear) -> None:
    grad = torch.ones(2, 4)
    expected = W - 0.1 * (grad + 0.5 * ~E * W)
    assert_close(one_step(layer, grad, "sr_ste", decay=0.5), expected)


def test_sr_ste_without_decay_is_ste(layer: nn.Linear) -> None:
    grad = torch.ones(2, 4)
    assert_close(one_step(layer, grad, "sr_ste", decay=0.0), W - 0.1, rtol=0, atol=0)


def test_the_papers_ablation_with_a_negative_decay_is_a_method_of_your_own(
    layer: nn.Linear,
) -> None:
    class Pushed(Method):
        def gradient_decay(self, step: Step) -> float:
            return -0.5

    expected = W * (1 + 0.1 * 0.5 * ~E)
    assert_close(one_step(layer, torch.zeros(2, 4), Pushed()), expected)


def test_a_decay_that_becomes_negative_is_refused_when_it_does() -> None:
    falling = SRSTE(decay=lambda count: 1.0 - count)
    assert falling.decay_at(1) == 0.0
    with pytest.raises(ValueError, match=r"decay -1\.0: want a number, 0 or more"):
        falling.decay_at(2)


def test_the_decoupled_form_is_scaled_by_the_learning_rate_alone(layer: nn.Linear) -> None:
    """Under Adam the gradient form would move every pruned weight by the learning rate."""
    optimizer = torch.optim.Adam(layer.parameters(), 0.1)
    sparsifier = nm.sparsify(layer, optimizer, "2:4", decay=0.5, form="decoupled")
    layer.weight.grad = torch.zeros(2, 4)
    optimizer.step()
    dense = sparsifier.state_dict()["weights"]["weight"]["dense_weight"]
    assert_close(dense, W - 0.1 * 0.5 * ~E * W)


def test_the_gradient_form_goes_through_adam(layer: nn.Linear) -> None:
    optimizer = torch.optim.Adam(layer.parameters(), 0.1, eps=1e-30)
    sparsifier = nm.sparsify(layer, optimizer, "2:4", decay=0.5)
    layer.weight.grad = torch.where(E, 1.0, 0.0)
    optimizer.step()
    dense = sparsifier.state_dict()["weights"]["weight"]["dense_weight"]
    assert_close(dense, W - 0.1 * torch.where(E, 1.0, W.sign()))


def test_the_decay_of_a_maximized_objective_still_decays(layer: nn.Linear) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, maximize=True)
    sparsifier = nm.sparsify(layer, optimizer, "2:4", decay=0.5)
    layer.weight.grad = torch.zeros(2, 4)
    optimizer.step()
    dense = sparsifier.state_dict()["weights"]["weight"]["dense_weight"]
    assert_close(dense, W - 0.1 * 0.5 * ~E * W)


def test_a_weight_without_gradient_is_left_alone(layer: nn.Linear) -> None:
    for form in ("gradient", "decoupled"):
        optimizer = torch.optim.SGD(layer.parameters(), 0.1)
        sparsifier = nm.sparsify(layer, optimizer, "2:4", decay=0.5, form=form)
        before = sparsifier.state_dict()["weights"]["weight"]["dense_weight"].clone()
        optimizer.step()
        after = sparsifier.state_dict()["weights"]["weight"]["dense_weight"]
        assert_close(after, before, rtol=0, atol=0)
        sparsifier.remove()


def test_fixed_keeps_one_mask_whatever_the_gradient_says(layer: nn.Linear) -> None:
    grad = torch.tensor([[50.0, 50.0, -50.0, -50.0], [0.0, 0.0, -50.0, 50.0]])
    expected = (W - 0.1 * grad) * E
    assert_close(one_step(layer, grad, "fixed"), expected)
    assert_close(layer.weight.detach(), expected)


def test_fixed_against_momentum_and_weight_decay(layer: nn.Linear) -> None:
    """Momentum gathered before pruning would move pruned weights."""
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    layer.weight.grad = torch.ones(2, 4)
    optimizer.step()
    sparsifier = nm.sparsify(layer, optimizer, "2:4", method="fixed")
    pruned = layer.weight.detach() == 0
    assert int(pruned.sum()) == 4
    for _ in range(5):
        layer.weight.grad = torch.randn(2, 4)
        optimizer.step()
        assert not layer.weight.detach()[pruned].any()
    assert sparsifier.telemetry().sad == 0
    assert not sparsifier.state_dict()["weights"]["weight"]["dense_weight"][pruned].any()


def test_dense_does_nothing(layer: nn.Linear) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    sparsifier = nm.sparsify(layer, optimizer, "2:4", method="dense")
    assert_close(layer.weight.detach(), W, rtol=0, atol=0)
    assert [row.reason for row in sparsifier.report().rows] == ["method 'dense'"]
    assert not sparsifier.telemetry().rows
    assert type(sparsifier.method) is Dense


# The strength over time.


def test_the_decay_rises_over_the_warm_up() -> None:
    rising = SRSTE(decay=1.0, warmup_steps=4)
    assert [rising.decay_at(count) for count in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert SRSTE(decay=1.0).decay_at(0) == 1.0
    assert SRSTE().decay_at(10**6) == 2e-4


def test_the_decay_may_be_a_schedule() -> None:
    falling = SRSTE(decay=lambda count: 1.0 / (1 + count), warmup_steps=2)
    assert [falling.decay_at(count) for count in range(4)] == [0.0, 0.25, 1 / 3, 0.25]


def test_the_step_count_that_a_schedule_sees(layer: nn.Linear) -> None:
    seen: list[int] = []

    def decay(count: int) -> float:
        seen.append(count)
        return 0.0

    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    nm.sparsify(layer, optimizer, "2:4", decay=decay)
    for _ in range(3):
        layer.weight.grad = torch.ones(2, 4)
        optimizer.step()
    assert seen == [0, 1, 2]


def test_only_one_form_acts_on_the_gradient() -> None:
    step = Step(0, 0.1)
    assert SRSTE(decay=0.5).gradient_decay(step) == 0.5
    assert SRSTE(decay=0.5, form="decoupled").gradient_decay(step) == 0.0
    assert STE().gradient_decay(step) == 0.0


# The moments.


def test_the_moments_of_a_method_by_hand() -> None:
    base = Method()
    assert_close(base.score(W, None), W.abs())
    stage = Stage(2, 4)
    assert_close(base.effective(W, E, stage), W * E)
    fixed = Fixed()
    assert_close(fixed.score(W, None), W.abs())
    assert_close(fixed.score(W, E), E.float())
    weight = Weight(W.clone(), W * E, torch.ones(2, 4), E, stage)
    fixed.before_step(weight, Step(0, 0.1))
    assert_close(weight.grad, E.float())
    fixed.after_step(weight, Step(0, 0.1))
    assert_close(weight.dense, W * E)


def test_effective_gives_true_zeros_where_pruned() -> None:
    dense, mask = torch.tensor([[-1.0, float("inf")]]), torch.tensor([[False, True]])
    held = STE().effective(dense, mask, Stage(1, 2))
    assert held.tolist() == [[0.0, float("inf")]]
    assert not torch.signbit(held[0, 0])


# A user's own.


def test_ones_own_method_by_one_decorator(layer: nn.Linear, registered: list[str]) -> None:
    registered.append("smallest")

    @method("smallest")
    class Smallest(Method):
        def __init__(self, sign: float = -1.0) -> None:
            self.sign = sign

        def score(self, dense: Tensor, mask: Tensor | None) -> Tensor:
            return self.sign * dense.abs()

    assert Smallest.name == "smallest"
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    sparsifier = nm.sparsify(layer, optimizer, "2:4", method="smallest")
    assert_close(layer.weight.detach(), W * ~E, rtol=0, atol=0)
    assert sparsifier.report().ok
    sparsifier.remove()
    with pytest.raises(ValueError, match=r"'smallest' is registered already"):
        method("smallest")(Smallest)


def test_a_ready_method_is_taken_as_it_is(layer: nn.Linear) -> None:
    ready = SRSTE(decay=0.5)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    assert nm.sparsify(layer, optimizer, "2:4", method=ready).method is ready


class Shrunk(Method):
    """Computes with half the weight, and keeps the larger mask that it had."""

    keeps_mask = True

    def __init__(self) -> None:
        self.masks: list[Tensor | None] = []

    def score(self, dense: Tensor, mask: Tensor | None) -> Tensor:
        self.masks.append(mask)
        return dense.abs()

    def effective(self, dense: Tensor, mask: Tensor, stage: Stage) -> Tensor:
        return 0.5 * dense * mask

    def before_step(self, weight: Weight, step: Step) -> None:
        assert weight.grad is not None
        weight.grad.mul_(2.0)

    def after_step(self, weight: Weight, step: Step) -> None:
        weight.dense.add_(1.0)


def test_a_method_that_overrides_every_moment(layer: nn.Linear) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    shrunk = Shrunk()
    sparsifier = nm.sparsify(layer, optimizer, "2:4", method=shrunk)
    assert_close(layer.weight.detach(), 0.5 * W * E)
    layer.weight.grad = torch.ones(2, 4)
    optimizer.step()
    dense = sparsifier.state_dict()["weights"]["weight"]["dense_weight"]
    assert_close(dense, W - 0.2 + 1.0)
    assert shrunk.masks[0] is None
    assert shrunk.masks[-1] is not None
    assert_close(layer.weight.detach(), 0.5 * dense * nm.Pattern(2, 4).mask(dense.abs()))


class Lottery(Method):
    """Keeps weights by chance, as the docstring of `Method` proposes: no score comes twice."""

    def score(self, dense: Tensor, mask: Tensor | None) -> Tensor:
        return torch.rand_like(dense)

    def effective(self, dense: Tensor, mask: Tensor, stage: Stage) -> Tensor:
        return dense * mask


def test_a_method_by_chance_keeps_its_dense_weights(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight.fill_(1.0)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    sparsifier = nm.sparsify(layer, optimizer, "2:4", method=Lottery())
    sparsifier.report()
    assert bool(sparsifier.state_dict()["weights"]["weight"]["dense_weight"].all())


def test_telemetry_of_a_method_by_chance_counts_the_masks_in_the_model(layer: nn.Linear) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    torch.manual_seed(0)
    sparsifier = nm.sparsify(layer, optimizer, "2:4", method=Lottery())
    assert [sparsifier.telemetry().sad for _ in range(5)] == [0] * 5


# Errors.


def test_unknown_names_and_options() -> None:
    with pytest.raises(ValueError, match=r"unknown method 'srste'; known: .*did you mean 'sr_ste'"):
        build("srste", {})
    with pytest.raises(ValueError, match=r"'sr_ste' has no option 'lambda_w'; its options: decay,"):
        build("sr_ste", {"lambda_w": 1.0})
    with pytest.raises(ValueError, match=r"'ste' has no option 'decay'; its options: none"):
        build("ste", {"decay": 1.0})
    with pytest.raises(ValueError, match=r"options \['decay'\] beside a ready method"):
        build(SRSTE(), {"decay": 1.0})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"form": "adamw"}, "form 'adamw': want 'gradient' or 'decoupled'"),
        ({"decay": "2e-4"}, "decay '2e-4': want a number, 0 or more, or a function"),
        ({"decay": None}, "decay None: want a number"),
        ({"decay": -1e-4}, "decay -0.0001: want a number, 0 or more"),
        ({"warmup_steps": -1}, "warmup_steps -1: want 0 or more"),
    ],
)
def test_wrong_options_of_sr_ste(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SRSTE(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("decay", [float("nan"), float("inf"), True])
def test_a_decay_that_is_no_strength_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=f"decay {decay!r}"):
        SRSTE(decay=decay)


@pytest.mark.parametrize("given", [None, SRSTE, 3])
def test_a_method_that_is_no_name_says_what_is_wanted(given: object) -> None:
    with pytest.raises(ValueError, match=r"method"):
        build(given, {})  # type: ignore[arg-type]


def test_a_skipped_fused_step_changes_nothing_in_the_decoupled_form(layer: nn.Linear) -> None:
    """Under a GradScaler a fused optimizer is called even for infinite gradients."""
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, fused=True)
    sparsifier = nm.sparsify(layer, optimizer, "2:4", decay=0.5, form="decoupled")
    before = sparsifier.state_dict()["weights"]["weight"]["dense_weight"].clone()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(layer(torch.full((1, 4), float("inf"))).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    after = sparsifier.state_dict()["weights"]["weight"]["dense_weight"]
    assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_pruned_weights_are_plain_zeros_whatever_they_were(dtype: torch.dtype) -> None:
    dense = torch.tensor([[1.5, -2.0, float("nan"), -0.0], [-3.0, float("inf"), 4.0, 5.0]])
    mask = torch.tensor([[True, False, False, True], [False, False, True, True]])
    for its, kept in ((dense, mask), (dense.T, mask.T), (dense.T, mask.T.contiguous())):
        sparse = STE().effective(its.to(dtype), kept, Stage(n=2, m=4))
        assert torch.equal(sparse, its.to(dtype).where(kept, 0.0))
        assert not torch.signbit(sparse[~kept]).any()
        assert sparse.stride() == its.stride()
