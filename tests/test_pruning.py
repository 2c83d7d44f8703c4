"""One-shot pruning: in place, all or nothing, and said what was done."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import nmsparsity as nm
from nmsparsity.pruning import Criterion, criteria, criterion


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_by_hand() -> None:
    layer = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(
            torch.tensor([[4.0, -3, 2, 1], [1, 1, -1, -1], [0, 0, 0, 0], [1, -5, 5, -5]])
        )
    kept = torch.tensor([[4.0, -3, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, -5, 5, 0]])
    address = layer.weight.data_ptr()
    report = nm.prune(layer, "2:4")
    assert_close(layer.weight.detach(), kept, rtol=0, atol=0)
    assert layer.weight.data_ptr() == address
    assert report.ok


@pytest.mark.parametrize("axis", ["input", "kernel"])
@pytest.mark.parametrize("pattern", ["2:4", "1:8", "3:5", "7:64", "1:1"])
def test_what_stays_is_the_weight_itself(pattern: str, axis: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 8, 3), nn.ConvTranspose2d(8, 16, 2, groups=2))
    before = state(model)
    report = nm.prune(model, pattern, axis=axis, remainder="pad", include="*")
    given = nm.Pattern.parse(pattern, axis=axis)
    assert report.ok or given.dense
    assert len(report.sparse) == (0 if given.dense else 2)
    for name, weight in model.state_dict().items():
        changed = weight != before[name]
        assert not weight[changed].any()
        assert ("bias" not in name and not given.dense) or not changed.any()
    layout = nm.Layout(input_dim=0, conv_groups=2)
    expected = given.mask(before["1.weight"].abs(), layout)
    assert torch.equal(model[1].weight != 0, expected)


def test_pruning_again_changes_nothing() -> None:
    model = mlp()
    nm.prune(model, "2:4")
    before = state(model)
    nm.prune(model, "2:4")
    assert_close(state(model), before, rtol=0, atol=0)
    assert nm.prune(model, "1:4").rows[0].density == 0.25


def test_the_report_lists_what_stays_dense_and_verify_agrees() -> None:
    model = mlp()
    report = nm.prune(model, {"0": "1:4", "2": "2:4"})
    assert {row.name: (row.pattern, row.density) for row in report.rows} == {
        "0.weight": ("1:4", 0.25),
        "2.weight": ("2:4", 0.5),
        "3.weight": (None, 1.0),
    }
    assert report.rows[2].reason == "no pattern is given for it"
    assert nm.verify(model).ok
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    broken = nm.verify(model)
    assert not broken.ok
    assert [row.pattern for row in broken.sparse] == ["1:4", "2:4"]


def test_a_pruned_model_still_trains_and_takes_gradients() -> None:
    model = mlp()
    nm.prune(model, "2:4")
    model(torch.ones(1, 16)).sum().backward()
    assert all(p.grad is not None and p.is_leaf for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype(dtype: torch.dtype) -> None:
    model = mlp().to(dtype)
    report = nm.prune(model, "2:4")
    assert report.ok
    assert [row.density for row in report.sparse] == [0.5, 0.5]
    assert model[0].weight.dtype == dtype


def test_a_frozen_model_is_pruned_too() -> None:
    assert nm.prune(mlp().requires_grad_(False), "2:4").ok


def test_strided_and_channels_last_memory_stay_as_they_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Linear(8, 8), nn.Conv2d(8, 8, 1))
    model[0].to(memory_format=torch.channels_last)
    model[1].weight = nn.Parameter(torch.randn(8, 8).t())
    before = state(model)
    strides = [p.stride() for p in model.parameters()]
    assert nm.prune(model, "2:4").ok
    assert [p.stride() for p in model.parameters()] == strides
    for name in ("0.weight", "1.weight"):
        mask = nm.Pattern(2, 4).mask(before[name].abs())
        assert_close(model.get_parameter(name).detach(), before[name] * mask, rtol=0, atol=0)


def test_an_empty_layer_is_nothing_to_prune() -> None:
    model = mlp()
    model[0].weight = nn.Parameter(torch.empty(0, 16))
    report = nm.prune(model, "2:4")
    assert report.ok
    assert report.rows[0].groups == 0


# All or nothing.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused_and_nothing_is_changed(value: float) -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight[1, 1] = value
    before = state(model)
    with pytest.raises(ValueError, match=r"layer '2\.weight' \[8, 8\]: it has NaN or infinity"):
        nm.prune(model, "2:4")
    assert_close(state(model), before, rtol=0, atol=0, equal_nan=True)
    assert not nm.verify(model).sparse


def test_nothing_to_prune_says_why() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    with pytest.raises(ValueError, match=r"no weight of the model can be 2:4: .*no multiple of 4"):
        nm.prune(model, "2:4")
    with pytest.raises(ValueError, match=r"no weight of the model can be 2:4: it has no layers"):
        nm.prune(nn.ReLU(), "2:4")


def test_unknown_criteria_and_wrong_patterns() -> None:
    with pytest.raises(ValueError, match=r"unknown pruning method 'magnitud'; known: .*magnitude"):
        nm.prune(mlp(), method="magnitud")
    with pytest.raises(ValueError, match=r"pattern '4:2'"):
        nm.prune(mlp(), "4:2")
    with pytest.raises(ValueError, match=r"axis 'row': want"):
        nm.prune(mlp(), axis="row")  # type: ignore[arg-type]


def test_meta_tensors_have_nothing_to_prune() -> None:
    model = nn.Sequential(nn.Linear(8, 8, device="meta"), nn.Linear(8, 2, device="meta"))
    with pytest.raises(ValueError, match=r"'0\.weight' .*meta device"):
        nm.prune(model, "2:4")


def test_an_expanded_weight_is_refused() -> None:
    """Rows that are one memory: zeroing one group would zero them all."""
    model = mlp()
    model[2].weight = nn.Parameter(torch.randn(8, 1).expand(8, 8))
    with pytest.raises(ValueError, match=r"'2\.weight'"):
        nm.prune(model, "2:4")


def test_a_weight_kept_by_a_sparsifier_is_not_pruned_behind_its_back() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier = nm.sparsify(model, optimizer, "2:4")
    with pytest.raises(ValueError, match=r"'0\.weight'.*remove\(\)"):
        nm.prune(model, "1:4")
    sparsifier.remove()
    nm.prune(model, "1:4")


def test_an_eight_bit_float_is_refused_by_name() -> None:
    model = mlp()
    weight = model[0].weight.detach().to(torch.float8_e4m3fn)
    model[0].weight = nn.Parameter(weight, requires_grad=False)
    report = nm.prune(model, "2:4")
    assert {row.name for row in report.sparse} == {"2.weight"}


# One's own criterion.


def test_a_criterion_of_ones_own() -> None:
    @criterion("smallest")
    class Smallest(Criterion):
        def score(self, weight: Tensor) -> Tensor:
            return -weight.abs()

    try:
        layer = nn.Linear(4, 1, bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
        nm.prune(layer, "2:4", method="smallest")
        assert layer.weight.tolist() == [[0.0, 0.0, 2.0, 1.0]]
    finally:
        del criteria._things["smallest"]
    with pytest.raises(TypeError):
        Criterion()  # type: ignore[abstract]
