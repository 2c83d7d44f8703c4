"""The sparsifier where it is easily broken: odd memory, odd orders, odd optimizers."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import SGD, Adam, Optimizer
from torch.testing import assert_close

import nmsparsity as nm


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))


def train(model: nn.Module, optimizer: Optimizer, steps: int = 3, first: int = 0) -> None:
    for seed in range(first, first + steps):
        g = torch.Generator().manual_seed(seed)
        optimizer.zero_grad()
        batch = torch.randn(4, 8, generator=g).to(next(model.parameters()).dtype)
        model(batch).pow(2).mean().backward()
        optimizer.step()


def pair(make=lambda p: SGD(p, 0.1, momentum=0.9), seed: int = 0, **options):
    model = mlp(seed)
    optimizer = make(model.parameters())
    return model, optimizer, nm.sparsify(model, optimizer, "2:4", **options)


def dense(sparsifier: nm.Sparsifier, name: str = "0.weight") -> Tensor:
    return sparsifier.state_dict()["weights"][name]["dense_weight"].clone()


def exact(one: object, other: object) -> None:
    assert_close(one, other, rtol=0, atol=0)


# What goes wrong in one place stays there.


def test_nan_in_one_layer_leaves_the_dense_weights_of_the_others() -> None:
    model, optimizer, sparsifier = pair(lambda p: SGD(p, 0.0))
    before = dense(sparsifier)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model[2].weight.grad.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"'2\.weight' \[8, 8\].*NaN"):
        optimizer.step()
    with torch.no_grad():
        model[2].weight.copy_(mlp(3)[2].weight)
    exact(dense(sparsifier), before)


@pytest.mark.parametrize("model_first", [False, True])
def test_a_diverged_run_goes_back_to_its_checkpoint(model_first: bool) -> None:
    model, optimizer, sparsifier = pair()
    train(model, optimizer)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    before = dense(sparsifier)
    model[2].weight.grad.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        optimizer.step()
    if model_first:
        model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    if not model_first:
        model.load_state_dict(saved[0])
    exact(dense(sparsifier), before)
    train(model, optimizer)
    assert sparsifier.report().ok


def test_a_refused_model_is_left_as_it_was() -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight[1, 1] = float("nan")
    before = copy.deepcopy(model.state_dict())
    optimizer = SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"'2\.weight'"):
        nm.sparsify(model, optimizer, "2:4")
    assert_close(model.state_dict(), before, rtol=0, atol=0, equal_nan=True)
    assert not optimizer._optimizer_step_pre_hooks
    with torch.no_grad():
        model[2].weight[1, 1] = 0.0
    assert nm.sparsify(model, optimizer, "2:4").report().ok


def test_a_refused_second_sparsifier_is_left_without_trace() -> None:
    model = mlp()
    optimizer = SGD(model.parameters(), 0.1)
    first = nm.sparsify(model, optimizer, "2:4", include="2")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"'2\.weight' is kept sparse by another sparsifier"):
        nm.sparsify(model, optimizer, "1:4")
    exact(model.state_dict(), before)
    second = nm.sparsify(model, optimizer, "1:4", include="0")
    train(model, optimizer)
    assert first.report().ok
    assert second.report().ok


# Checkpoints in unusual orders.


def test_loading_a_checkpoint_before_sparsify() -> None:
    """The order of most scripts: build, load, wrap. The dense weights must not be lost unheard."""
    model, optimizer, sparsifier = pair()
    train(model, optimizer)
    again = mlp(1)
    again_optimizer = SGD(again.parameters(), 0.1, momentum=0.9)
    again.load_state_dict(model.state_dict())
    again_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other = nm.sparsify(again, again_optimizer, "2:4")
    exact(dense(other), dense(sparsifier))
    assert other.steps == 3


def test_two_sparsifiers_on_one_optimizer_resume() -> None:
    def build(seed: int):
        model = mlp(seed)
        optimizer = SGD(model.parameters(), 0.1)
        one = nm.sparsify(model, optimizer, "2:4", include="0")
        return model, optimizer, one, nm.sparsify(model, optimizer, "1:4", include="2")

    model, optimizer, one, two = build(0)
    train(model, optimizer)
    again, again_optimizer, one_again, two_again = build(1)
    again.load_state_dict(model.state_dict())
    again_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    exact(dense(one_again), dense(one))
    exact(dense(two_again, "2.weight"), dense(two, "2.weight"))
    assert (one_again.steps, two_again.steps) == (3, 3)


def test_a_checkpoint_from_before_the_first_step_fits_a_plain_adam() -> None:
    _, optimizer, _sparsifier = pair(Adam)
    plain = mlp()
    plain_optimizer = Adam(plain.parameters())
    plain_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(plain, plain_optimizer)


def test_a_fixed_mask_is_taken_of_the_weights_that_are_loaded() -> None:
    """From SR-STE to a fixed mask: the state has no mask, and that of the new model is no use."""
    model, optimizer, sparsifier = pair()
    train(model, optimizer)
    other_model, _, other = pair(seed=1, method="fixed")
    other.load_state_dict(copy.deepcopy(sparsifier.state_dict()))
    exact(other_model[0].weight, model[0].weight)


def test_a_mask_that_is_loaded_does_not_freeze_telemetry() -> None:
    """From a fixed mask to SR-STE: masks move again."""
    *_, fixed = pair(method="fixed")
    model, optimizer, sparsifier = pair(lambda p: SGD(p, 1.0))
    sparsifier.load_state_dict(copy.deepcopy(fixed.state_dict()))
    before = model[0].weight != 0
    train(model, optimizer, 20)
    moved = int((before != (model[0].weight != 0)).sum())
    assert moved > 0
    assert sparsifier.telemetry().rows[0].sad == moved


@pytest.mark.parametrize("shape", [(4, 8), (1, 8), (8,), ()])
def test_a_state_of_another_shape_names_the_layer(shape: tuple[int, ...]) -> None:
    model, _, sparsifier = pair()
    state = copy.deepcopy(sparsifier.state_dict())
    state["weights"]["2.weight"]["dense_weight"] = torch.zeros(shape)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"'2\.weight' \[8, 8\]"):
        sparsifier.load_state_dict(state)
    exact(model.state_dict(), before)


def test_a_copied_pair_of_model_and_optimizer_trains_dense_and_verify_says_so() -> None:
    """`copy.deepcopy` of an optimizer drops its hooks; the original goes on."""
    model, optimizer, _sparsifier = pair()
    model_copy, optimizer_copy = copy.deepcopy((model, optimizer))
    train(model_copy, optimizer_copy)
    assert not nm.verify(model_copy, "2:4").ok
    train(model, optimizer)
    assert nm.verify(model, "2:4").ok


# Inside `dense_weights`.


@pytest.mark.parametrize("ask", ["telemetry", "report", "state_dict", "optimizer", "nested"])
def test_a_question_inside_dense_weights_does_not_end_them(ask: str) -> None:
    model, optimizer, sparsifier = pair()
    train(model, optimizer)
    expected = dense(sparsifier)
    with sparsifier.dense_weights():
        if ask == "optimizer":
            optimizer.state_dict()
        elif ask == "nested":
            with sparsifier.dense_weights():
                pass
        else:
            getattr(sparsifier, ask)()
        exact(model[0].weight.detach(), expected)
    assert sparsifier.report().ok


def test_an_exception_inside_dense_weights_ends_them() -> None:
    model, _, sparsifier = pair()
    expected = dense(sparsifier)
    with pytest.raises(KeyError), sparsifier.dense_weights():
        raise KeyError
    assert nm.Pattern(2, 4).holds(model[0].weight)
    exact(dense(sparsifier), expected)


# Odd memory.


def test_a_weight_whose_memory_overlaps_itself_is_refused_by_name() -> None:
    model = mlp()
    model[2].weight = nn.Parameter(torch.randn(1, 8).expand(8, 8))
    with pytest.raises(ValueError, match=r"'2\.weight'"):
        nm.sparsify(model, SGD(model.parameters(), 0.1), "2:4")


def test_views_of_one_flat_buffer_are_trained_apart() -> None:
    model, book = mlp(), mlp()
    flat = torch.cat([model[0].weight.detach(), model[2].weight.detach()])
    model[0].weight, model[2].weight = nn.Parameter(flat[:8]), nn.Parameter(flat[8:])
    for net in (model, book):
        optimizer = SGD(net.parameters(), 0.1)
        sparsifier = nm.sparsify(net, optimizer, "2:4")
        train(net, optimizer)
        assert sparsifier.report().ok
    exact(model[0].weight, book[0].weight)
    exact(model[2].weight, book[2].weight)


def test_memory_replaced_under_the_parameter() -> None:
    model, optimizer, sparsifier = pair()
    same, same_optimizer, same_sparsifier = pair()
    for step in range(20):
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        train(model, optimizer, 1, step)
        train(same, same_optimizer, 1, step)
    exact(dense(sparsifier), dense(same_sparsifier))


@pytest.mark.parametrize("kind", ["transposed", "expanded"])
def test_gradients_in_odd_memory(kind: str) -> None:
    model, optimizer, sparsifier = pair(lambda p: SGD(p, 0.1), decay=0.5)
    before, kept = dense(sparsifier), model[0].weight != 0
    grad = torch.randn(8, 8).t() if kind == "transposed" else torch.ones(1).expand(8, 8)
    model[0].weight.grad = grad
    expected = before - 0.1 * (grad + 0.5 * ~kept * before)
    optimizer.step()
    assert_close(dense(sparsifier), expected)


def test_a_layer_without_gradient_keeps_its_dense_weight() -> None:
    model, optimizer, sparsifier = pair()
    before = dense(sparsifier), dense(sparsifier, "2.weight")
    train(model[2:], optimizer)
    exact(dense(sparsifier), before[0])
    assert not torch.equal(dense(sparsifier, "2.weight"), before[1])
    assert sparsifier.report().ok


def test_shared_memory_and_inference_mode() -> None:
    model, optimizer, sparsifier = pair()
    model.share_memory()
    with torch.inference_mode():
        model(torch.zeros(1, 8))
        sparsifier.telemetry()
    train(model, optimizer)
    with torch.inference_mode(), sparsifier.dense_weights():
        assert bool((model[0].weight != 0).all())
    train(model, optimizer)
    assert sparsifier.report().ok


def test_a_model_on_meta_has_nothing_to_sparsify() -> None:
    model = nn.Sequential(nn.Linear(8, 8, device="meta"), nn.Linear(8, 2, device="meta"))
    with pytest.raises(ValueError, match=r"'0\.weight' .*meta device"):
        nm.sparsify(model, SGD(model.parameters(), 0.1), "2:4")


def test_a_shape_changed_under_the_parameter_names_the_layer() -> None:
    model, _, sparsifier = pair()
    model[0].weight.data = torch.randn(16, 8)
    with pytest.raises((ValueError, RuntimeError), match=r"'0\.weight'"):
        sparsifier.report()


# Moves that swap tensors.


def test_a_sharded_model_can_be_cast() -> None:
    """DTensors are moved by `swap_tensors`, which refuses tensors that a weak reference knows."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = mlp()
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        optimizer = SGD(model.parameters(), 0.1)
        sparsifier = nm.sparsify(model, optimizer, "2:4")
        train(model, optimizer)
        model.to(torch.float64)
        assert sparsifier.report().ok
        assert nm.verify(model).ok
        assert dense(sparsifier).dtype == torch.float64
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    "ask", ["report", "telemetry", "state_dict", "dense_weights", "step", "sparsify"]
)
def test_a_sharded_model_after_an_evaluation(ask: str) -> None:
    """FSDP2 leaves whole weights in its outermost module until a backward."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = mlp()
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        optimizer = SGD(model.parameters(), 0.1)
        sparsifier = nm.sparsify(model, optimizer, "2:4")
        train(model, optimizer)
        expected = dense(sparsifier).to_local().clone()
        model.eval()
        with torch.no_grad():
            model(torch.randn(4, 8))
        assert type(model[0].weight) is nn.Parameter
        if ask == "dense_weights":
            with sparsifier.dense_weights():
                exact(model[0].weight.to_local().detach(), expected)
        elif ask == "step":
            train(model, optimizer)
        elif ask == "sparsify":
            sparsifier.remove()
            with torch.no_grad():
                model(torch.randn(4, 8))
            sparsifier = nm.sparsify(model, optimizer, "2:4")
            train(model, optimizer)
        else:
            getattr(sparsifier, ask)()
        assert nm.verify(model).ok
        assert sparsifier.report().ok
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("casts", [[torch.float64], [torch.float64, torch.float32], [torch.half]])
@pytest.mark.parametrize("method", ["sr_ste", "fixed"])
def test_a_sharded_model_trains_on_like_a_whole_one_after_casts(
    casts: list[torch.dtype], method: str
) -> None:
    """Also where it has its old dtype again, in new memory."""
    model, optimizer, sparsifier = pair(method=method)
    model.to(casts[-1])
    train(model, optimizer)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        sharded = mlp()
        fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
        its_optimizer = SGD(sharded.parameters(), 0.1, momentum=0.9)
        its = nm.sparsify(sharded, its_optimizer, "2:4", method=method)
        for dtype in casts:
            sharded.to(dtype)
        train(sharded, its_optimizer)
        assert nm.verify(sharded).ok
        exact(sharded[0].weight.to_local(), model[0].weight.detach())
        exact(dense(its).to_local(), dense(sparsifier))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("dtypes", [[torch.float64], [torch.float64, torch.float32]])
def test_a_model_whose_parameters_are_swapped_takes_its_dense_weights_along(
    dtypes: list[torch.dtype],
) -> None:
    model, optimizer, sparsifier = pair()
    train(model, optimizer)
    before = dense(sparsifier)
    optimizer.zero_grad()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        for dtype in dtypes:
            model.to(dtype)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    exact(dense(sparsifier), before.to(dtypes[-1]))
    train(model, optimizer)
    assert nm.verify(model).ok


def test_after_replaced_parameters_the_old_sparsifier_neither_hinders_nor_ends_the_new() -> None:
    model, _, old = pair()
    model.load_state_dict(mlp(1).state_dict(), assign=True)
    optimizer = SGD(model.parameters(), 0.1)
    new = nm.sparsify(model, optimizer, "1:4")
    old.remove()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    assert [row.pattern for row in nm.verify(model).sparse] == ["1:4"] * 2
    with pytest.raises(ValueError, match=r"'0\.weight' .*kept sparse by a sparsifier"):
        nm.prune(model)
    new.remove()
    assert nm.verify(model).rows[-1].pattern is None


# Odd optimizers.


def test_two_networks_with_an_optimizer_each() -> None:
    one, one_optimizer, one_sparsifier = pair()
    two, two_optimizer, two_sparsifier = pair(Adam, seed=1)
    for step in range(3):
        train(one, one_optimizer, 1, step)
        train(two, two_optimizer, 1, step)
    assert one_sparsifier.report().ok
    assert two_sparsifier.report().ok
    assert (one_sparsifier.steps, two_sparsifier.steps) == (3, 3)


def test_one_network_with_two_optimizers() -> None:
    model = mlp()
    head = SGD(model[2:].parameters(), 0.1)
    body = SGD(model[0].parameters(), 0.1)
    of_head, of_body = nm.sparsify(model, head, "2:4"), nm.sparsify(model, body, "1:4")
    assert list(of_head.weights()) == ["2.weight"]
    assert list(of_body.weights()) == ["0.weight"]
    for _ in range(3):
        model(torch.ones(1, 8)).sum().backward()
        head.step()
        body.step()
    assert nm.verify(model, {"0": "1:4", "2": "2:4"}).ok
    assert of_head.report().ok


class Lookahead(Optimizer):
    """Every second step the weights go half of the way back (arXiv 1907.08610)."""

    def __init__(self, inner: Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.inner, self.count = inner, 0
        self.slow = [p.detach().clone() for group in inner.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        loss = self.inner.step(closure)
        self.count += 1
        if self.count % 2 == 0:
            fast = [p for group in self.inner.param_groups for p in group["params"]]
            for slow, parameter in zip(self.slow, fast, strict=True):
                slow.add_(parameter - slow, alpha=0.5)
                parameter.copy_(slow)
        return loss


def test_lookahead_around_the_optimizer() -> None:
    """By the book: the slow average is one of dense weights."""
    model = mlp()
    optimizer = Lookahead(SGD(model.parameters(), 0.1))
    sparsifier = nm.sparsify(model, optimizer, "2:4")
    before = dense(sparsifier)
    train(model, optimizer, 1)
    after_one = dense(sparsifier)
    optimizer.param_groups[0]["lr"] = 0.0
    train(model, optimizer, 1)
    with_decay_only = before + 0.5 * (after_one - before)
    assert sparsifier.report().ok
    assert_close(dense(sparsifier), with_decay_only)


def test_a_wrapper_that_is_an_optimizer_only_by_name_is_refused_with_the_remedy() -> None:
    """Like Accelerate's: it never calls `Optimizer.__init__`, so hooks would not run."""

    class Wrapped(Optimizer):
        def __init__(self, optimizer: Optimizer) -> None:
            self.optimizer = optimizer

        @property
        def param_groups(self):
            return self.optimizer.param_groups

        def step(self, closure=None):
            return self.optimizer.step(closure)

    model = mlp()
    before = copy.deepcopy(model.state_dict())
    wrapped = Wrapped(SGD(model.parameters(), 0.1))
    with pytest.raises(ValueError, match="optimizer"):
        nm.sparsify(model, wrapped, "2:4")
    exact(model.state_dict(), before)


@pytest.mark.parametrize("given", ["2:4", None, "module"])
def test_what_is_no_optimizer_is_refused_with_what_is_wanted(given: object) -> None:
    model = mlp()
    with pytest.raises((TypeError, ValueError), match=r"optimizer"):
        nm.sparsify(model, model if given == "module" else given, "2:4")  # type: ignore[arg-type]


def test_a_new_parameter_group_joins_later() -> None:
    model, optimizer, sparsifier = pair()
    late = nn.Linear(2, 2)
    optimizer.add_param_group({"params": list(late.parameters()), "lr": 1.0})
    train(nn.Sequential(model, late), optimizer)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(nn.Sequential(model, late), optimizer)
    assert sparsifier.report().ok


def test_remove_may_be_said_twice() -> None:
    model, optimizer, sparsifier = pair()
    sparsifier.remove()
    sparsifier.remove()
    train(model, optimizer)
    assert not nm.verify(model, "2:4").ok
