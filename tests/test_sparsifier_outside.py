"""What is done to a model between steps: writes, casts, copies, other patterns; on both paths."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.testing import assert_close

import nmsparsity as nm
from nmsparsity.masters import Masters
from nmsparsity.methods import SRSTE, SSTE, Fixed, Gradual, Method


class SlowSRSTE(SRSTE):
    """The same, one weight at a time by plain torch: an own `score` is not for the kernel."""

    def score(self, dense: Tensor, mask: Tensor | None) -> Tensor:
        return dense.abs()


class Noisy(Method):
    keeps_mask = True

    def score(self, dense: Tensor, mask: Tensor | None) -> Tensor:
        return dense.abs() + 0.5 * torch.rand_like(dense)


METHODS = {"native": SRSTE, "slow": SlowSRSTE}
both = pytest.mark.parametrize("how", METHODS.values(), ids=METHODS.keys())
SOFT = {**METHODS, "s_ste": SSTE}
soft = pytest.mark.parametrize("how", SOFT.values(), ids=SOFT.keys())
EVERY = {**SOFT, "mask": partial(Gradual, steps=2), "count": partial(Gradual, "count", steps=2)}
every = pytest.mark.parametrize("how", EVERY.values(), ids=EVERY.keys())


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 4))


def train(model: nn.Module, optimizer: Optimizer, steps: int = 3) -> None:
    for seed in range(steps):
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        model(x.to(next(model.parameters()).dtype)).float().square().mean().backward()
        optimizer.step()


def pair(method: str | Method = "sr_ste", pattern: str = "2:4", make=None, **options):
    model = mlp()
    make = make or (lambda p: SGD(p, 0.1, momentum=0.9))
    optimizer = make(model.parameters())
    return model, optimizer, nm.sparsify(model, optimizer, pattern, method=method, **options)


def dense(sparsifier: nm.Sparsifier, name: str = "0.weight") -> Tensor:
    return sparsifier.state_dict()["weights"][name]["dense_weight"].clone()


def exact(one: object, other: object) -> None:
    assert_close(one, other, rtol=0, atol=0)


# Writes.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["sr_ste", "fixed", SlowSRSTE()], ids=["sr_ste", "fixed", "own"])
def test_a_write_through_data_is_noticed_by_the_next_step(method, dtype: torch.dtype) -> None:
    model = mlp().to(dtype)
    optimizer = SGD(model.parameters(), 0.0)
    sparsifier = nm.sparsify(model, optimizer, "2:4", method=method)
    train(model, optimizer, 3)
    new = mlp(7)[0].weight.detach().to(dtype)
    model[0].weight.data.copy_(new)
    optimizer.step()
    expected = new * nm.Pattern(2, 4).mask(new.abs())
    exact(model[0].weight.detach(), expected)
    assert sparsifier.report().ok


@every
def test_a_write_inside_the_closure_is_noticed(how) -> None:
    model, optimizer, sparsifier = pair(how(), make=lambda p: SGD(p, 0.0))
    new = mlp(7)[0].weight.detach()

    def closure() -> Tensor:
        loss = model(torch.ones(2, 16)).sum()
        loss.backward()
        model[0].weight.data.copy_(new)
        return loss

    optimizer.step(closure)
    exact(dense(sparsifier), new)


@every
def test_loading_and_casting_between_steps_keeps_what_was_loaded(how) -> None:
    model, optimizer, sparsifier = pair(how(), make=lambda p: SGD(p, 0.0))
    train(model, optimizer)
    new = mlp(7)
    model.load_state_dict(new.state_dict())
    model.bfloat16()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    exact(dense(sparsifier), new[0].weight.detach().bfloat16())


@every
def test_elementwise_edits_between_steps_are_adopted_as_they_stand(how) -> None:
    """The quickstart says so, and the way to edit dense weights."""
    model, optimizer, sparsifier = pair(how())
    train(model, optimizer)
    with sparsifier.dense_weights(), torch.no_grad():
        model[0].weight.clamp_(-0.1, 0.1)
    assert int((dense(sparsifier) == 0).sum()) == 0
    zeros = int((model[0].weight == 0).sum())
    assert zeros >= model[0].weight.numel() // 2
    with torch.no_grad():
        model[0].weight.mul_(0.5)
    assert int((dense(sparsifier) == 0).sum()) == zeros


# Casts.


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("look", ["step", "report"])
def test_a_cast_round_trip_is_no_write(how, dtype: torch.dtype, look: str) -> None:
    model, optimizer, sparsifier = pair(how(decay=0.5), make=lambda p: SGD(p, 0.1))
    train(model, optimizer)
    before, sparse = dense(sparsifier), model[0].weight.detach().clone()
    model.to(dtype)
    model(torch.zeros(1, 16, dtype=dtype))
    model.float()
    assert not torch.equal(model[0].weight.detach(), sparse)
    if look == "report":
        assert sparsifier.report().ok
        exact(model[0].weight.detach(), sparse)
        exact(dense(sparsifier), before)
        return
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert_close(dense(sparsifier), before - 0.1 * 0.5 * (before - sparse))


@every
def test_a_double_round_trip_through_float_is_no_write(how) -> None:
    model = mlp().double()
    with torch.no_grad():
        model[0].weight.mul_(1 + 1e-12)
    optimizer = SGD(model.parameters(), 0.1)
    sparsifier = nm.sparsify(model, optimizer, "2:4", method=how())
    before = dense(sparsifier)
    model.float().double()
    exact(dense(sparsifier), before)


@soft
@pytest.mark.parametrize("cast", ["half", "double", "channels_last"])
def test_casts_inside_dense_weights(how, cast: str) -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 2))
    optimizer = SGD(model.parameters(), 0.1)
    sparsifier = nm.sparsify(model, optimizer, "2:4", method=how())
    before = dense(sparsifier)
    with sparsifier.dense_weights():
        if cast == "channels_last":
            model.to(memory_format=torch.channels_last)
        else:
            getattr(model, cast)()
    assert sparsifier.report().ok
    assert int((model[0].weight == 0).sum()) == model[0].weight.numel() // 2
    exact(dense(sparsifier), before.to(model[0].weight.dtype))


class Restrided(Optimizer):
    """Assigns weights of other strides at every step."""

    def __init__(self, parameters) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.data = p.data.t().clone().t().contiguous().add(1.0).t().contiguous().t()


@every
def test_an_optimizer_that_assigns_other_strides(how) -> None:
    model = nn.Sequential(nn.Linear(16, 8, bias=False), nn.Linear(8, 2, bias=False))
    optimizer = Restrided(model.parameters())
    sparsifier = nm.sparsify(model, optimizer, "2:4", method=how())
    before = dense(sparsifier)
    for _ in range(2):
        optimizer.step()
    assert model[0].weight.stride() == (1, 8)
    assert sparsifier.report().ok
    assert_close(dense(sparsifier), before + 2)


# One memory.


def test_two_parameters_on_one_memory_have_one_master_and_train_as_one_weight() -> None:
    def build(one_parameter: bool) -> tuple[nn.Sequential, nm.Sparsifier]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
        if one_parameter:
            model[1].weight = model[0].weight
        else:
            model[1].weight.data = model[0].weight.data
        optimizer = SGD(model.parameters(), 0.1)
        sparsifier = nm.sparsify(model, optimizer, "2:4", include="*", decay=0.0)
        train(model, optimizer)
        return model, sparsifier

    model, sparsifier = build(one_parameter=False)
    book, book_sparsifier = build(one_parameter=True)
    assert list(sparsifier.weights()) == ["0.weight"]
    (skipped,) = sparsifier.skipped
    assert (skipped.name, skipped.reason) == (
        "1.weight",
        "the same memory as '0.weight', which is listed",
    )
    assert_close(model[0].weight, book[0].weight)
    assert_close(dense(sparsifier), dense(book_sparsifier))


def test_one_memory_in_two_orders_is_refused() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight.data = model[0].weight.data.t()
    with pytest.raises(ValueError, match=r"'0\.weight' .* '1\.weight' .* one memory"):
        nm.sparsify(model, SGD(model.parameters(), 0.1), "2:4", include="*")


# Checkpoints.


@pytest.mark.parametrize("other", [{"pattern": "1:4"}, {"pattern": "4:8"}, {"axis": "kernel"}])
@pytest.mark.parametrize("way", ["optimizer", "sparsifier", "before"])
def test_a_state_of_another_pattern_is_refused_before_anything_is_loaded(other, way: str) -> None:
    model, optimizer, sparsifier = pair("fixed")
    train(model, optimizer)
    again = mlp(1)
    again_optimizer = SGD(again.parameters(), 0.1, momentum=0.9)
    said = rf"'0\.weight' \[32, 16\].*2:4 along the input axis.*{other.get('pattern', 'kernel')}"
    if way == "before":
        again_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        before = copy.deepcopy(again.state_dict())
        with pytest.raises(ValueError, match=said):
            nm.sparsify(again, again_optimizer, method="fixed", **other)
    else:
        wrong = nm.sparsify(again, again_optimizer, method="fixed", **other)
        before = copy.deepcopy(again.state_dict())
        by_optimizer = way == "optimizer"
        into, state = (again_optimizer, optimizer) if by_optimizer else (wrong, sparsifier)
        with pytest.raises(ValueError, match=said):
            into.load_state_dict(state.state_dict())
        assert not again_optimizer.state
    exact(again.state_dict(), before)


def test_a_state_from_before_it_named_its_pattern_still_loads() -> None:
    model, optimizer, sparsifier = pair("fixed")
    train(model, optimizer)
    state = copy.deepcopy(sparsifier.state_dict())
    for entry in state["weights"].values():
        for name in ("n", "m", "axis"):
            del entry[name]
    again, _, other = pair("fixed")
    other.load_state_dict(state)
    exact(again[0].weight, model[0].weight)
    with pytest.raises(ValueError, match=r"'0\.weight' .*another pattern.*1:4"):
        pair("fixed", "1:4")[2].load_state_dict(state)


def test_a_random_mask_that_is_kept_is_resumed_bit_by_bit() -> None:
    model, optimizer, _ = pair(Noisy())
    train(model, optimizer)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    random = torch.get_rng_state()
    train(model, optimizer)
    again, again_optimizer, sparsifier = pair(Noisy())
    torch.set_rng_state(random)
    again.load_state_dict(saved[0])
    again_optimizer.load_state_dict(saved[1])
    exact(again[0].weight, saved[0]["0.weight"])
    torch.set_rng_state(random)
    train(again, again_optimizer)
    exact(again.state_dict(), model.state_dict())
    assert sparsifier.report().ok


@pytest.mark.parametrize("make", [lambda p: AdamW(p, 1e-2), lambda p: SGD(p, 0.1)])
def test_a_checkpoint_from_before_the_first_step_that_is_loaded_before_sparsify(make) -> None:
    model, optimizer, sparsifier = pair(make=make)
    again = mlp(1)
    again_optimizer = make(again.parameters())
    again.load_state_dict(model.state_dict())
    again_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other = nm.sparsify(again, again_optimizer, "2:4")
    exact(dense(other), dense(sparsifier))
    assert not any("first_step" in name for name in again_optimizer.param_groups[0])


def test_what_waited_for_the_first_step_is_void_after_it() -> None:
    _, optimizer, _ = pair(make=lambda p: AdamW(p, 1e-2))
    again = mlp(1)
    again_optimizer = AdamW(again.parameters(), 1e-2)
    again_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(again, again_optimizer)
    trained = again[0].weight.detach().clone()
    exact(dense(nm.sparsify(again, again_optimizer, "2:4")), trained)


def test_a_checkpoint_loaded_after_a_step_that_raised() -> None:
    model, optimizer, sparsifier = pair()
    train(model, optimizer)
    saved, before = copy.deepcopy(optimizer.state_dict()), dense(sparsifier)
    optimizer.param_groups[0]["lr"] = "no number"
    with pytest.raises((TypeError, RuntimeError)):
        optimizer.step()
    optimizer.load_state_dict(saved)
    exact(dense(sparsifier), before)
    assert int((model[0].weight == 0).sum()) == model[0].weight.numel() // 2


# Copies and the end.


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, pickle.dumps])
def test_a_sparsifier_is_not_copied_and_says_what_to_do(copied) -> None:
    *_, sparsifier = pair()
    with pytest.raises(TypeError, match=r"cannot be copied.*make an optimizer.*call sparsify"):
        copied(sparsifier)


def test_a_copy_made_by_that_remedy_trains_as_the_original() -> None:
    model, optimizer, _ = pair()
    train(model, optimizer)
    twin = copy.deepcopy(model)
    twin_optimizer = SGD(twin.parameters(), 0.1, momentum=0.9)
    nm.sparsify(twin, twin_optimizer, "2:4")
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for net, made in ((model, optimizer), (twin, twin_optimizer)):
        train(net, made)
    exact(twin.state_dict(), model.state_dict())


@soft
def test_remove_after_a_step_that_raised_leaves_the_model_sparse(how) -> None:
    model, optimizer, sparsifier = pair(how())
    train(model, optimizer)
    optimizer.param_groups[0]["lr"] = "no number"
    with pytest.raises((TypeError, RuntimeError)):
        optimizer.step()
    sparsifier.remove()
    assert nm.verify(model, {"0": "2:4", "2": "2:4"}).ok


class Shrinking(Optimizer):
    """Halves every parameter, whether it has a gradient or not."""

    def __init__(self, parameters) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.mul_(0.5)


@soft
def test_an_optimizer_that_updates_weights_without_gradient(how) -> None:
    *_, optimizer, sparsifier = pair(how(), make=Shrinking)
    before = dense(sparsifier)
    optimizer.step()
    exact(dense(sparsifier), before / 2)


def test_the_two_paths_of_these_tests_are_two() -> None:
    from nmsparsity.native import available
    from nmsparsity.targets import select

    targets = select(mlp(), "2:4").targets
    assert len(Masters(targets, SlowSRSTE())._slow) == 2
    assert len(Masters(targets, Fixed())._slow) == 2
    assert len(Masters(targets, SRSTE())._fast) == (2 if available() else 0)


# A state of sparse training in an optimizer that went on without us.


def loaded(make, weights_too: bool = True) -> tuple[nn.Module, Optimizer, nm.Sparsifier]:
    """A plain pair that a checkpoint of sparse training was loaded into, and its sparsifier."""
    model, optimizer, sparsifier = pair(make=make)
    train(model, optimizer)
    plain = mlp(1)
    its_optimizer = make(plain.parameters())
    its_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    if weights_too:
        plain.load_state_dict(model.state_dict())
    return plain, its_optimizer, sparsifier


def test_what_a_plain_optimizer_trained_since_is_what_sparsify_takes() -> None:
    plain, optimizer, _ = loaded(lambda p: AdamW(p, 1e-2))
    train(plain, optimizer)
    trained = plain[0].weight.detach().clone()
    sparsifier = nm.sparsify(plain, optimizer, "2:4")
    exact(dense(sparsifier), trained)
    assert sparsifier.steps == 0
    assert not any("sparsity" in name for name in optimizer.state[plain[0].weight])


@pytest.mark.parametrize("make", [lambda p: SGD(p, 0.1, momentum=0.9), lambda p: SGD(p, 0.1)])
def test_where_steps_are_not_numbered_a_model_trained_since_is_refused(make) -> None:
    plain, optimizer, _ = loaded(make)
    train(plain, optimizer)
    trained = copy.deepcopy(plain.state_dict())
    with pytest.raises(ValueError, match=r"'0\.weight' \[32, 16\].*give a new optimizer"):
        nm.sparsify(plain, optimizer, "2:4")
    exact(plain.state_dict(), trained)
    exact(dense(nm.sparsify(plain, make(plain.parameters()), "2:4")), trained["0.weight"])


def test_where_steps_are_numbered_the_model_may_be_loaded_last() -> None:
    plain, optimizer, source = loaded(lambda p: AdamW(p, 1e-2), weights_too=False)
    sparsifier = nm.sparsify(plain, optimizer, "2:4")
    plain.load_state_dict(source._model.state_dict())
    exact(dense(sparsifier), dense(source))
    assert sparsifier.steps == 3
