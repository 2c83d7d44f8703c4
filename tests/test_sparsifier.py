"""The sparsifier against the paper's equations, and every promise it makes to its users."""

from __future__ import annotations

import copy
import gc
import io

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import nmsparsity as nm
from tests.paper import PaperNet

DECAY = 1e-2
SPARSE = ["0.weight", "2.weight"]


class FlatSGD(torch.optim.Optimizer):
    """Keeps the parameters in one buffer and never asks them again where they are."""

    def __init__(self, parameters, lr: float) -> None:
        parameters = list(parameters)
        super().__init__(parameters, {"lr": lr})
        self.flat = torch.cat([p.detach().flatten() for p in parameters])
        for parameter, part in zip(
            parameters, self.flat.split([p.numel() for p in parameters]), strict=True
        ):
            parameter.data = part.view_as(parameter)

    @torch.no_grad()
    def step(self, closure=None):
        (group,) = self.param_groups
        grads = torch.cat([p.grad.flatten() for p in group["params"]])
        self.flat.sub_(grads, alpha=group["lr"])


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "sgd momentum decay": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-2),
    "sgd nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "sgd foreach": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=True),
    "sgd fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, 1e-2, weight_decay=1e-2),
    "adam foreach": lambda p: torch.optim.Adam(p, 1e-2, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, 1e-2, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
    "adamw fused": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1, fused=True),
    "adamw amsgrad": lambda p: torch.optim.AdamW(p, 1e-2, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3),
    "flat buffer": lambda p: FlatSGD(p, 0.1),
}


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 4))


def batches(count: int = 12, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(8, 16, generator=g), torch.randn(8, 4, generator=g)) for _ in range(count)]


def loss_on(net, x: Tensor, y: Tensor) -> Tensor:
    return ((net(x) - y) ** 2).mean()


def pair(make, decay: float = DECAY, **options):
    """The same network twice: by the book, and sparsified."""
    book = PaperNet(mlp(), SPARSE, 2, 4, decay)
    model = mlp()
    optimizer = make(model.parameters())
    sparsifier = nm.sparsify(model, optimizer, "2:4", decay=decay, **options)
    return book, make(book.parameters()), model, optimizer, sparsifier


def assert_same(book: PaperNet, model: nn.Module, sparsifier: nm.Sparsifier) -> None:
    """Bit for bit: what the model computes with, and the dense weights behind it."""
    for name, value in book.effective().items():
        assert_close(model.get_parameter(name).detach(), value, rtol=0, atol=0, msg=name)
    with sparsifier.dense_weights():
        for name, value in book.net.named_parameters():
            assert_close(model.get_parameter(name), value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_follows_the_paper_bit_by_bit(make) -> None:
    book, book_optimizer, model, optimizer, sparsifier = pair(make)
    for x, y in batches():
        book_optimizer.zero_grad()
        book.backward(lambda net, x=x, y=y: loss_on(net, x, y))
        book.add_term()
        book_optimizer.step()
        optimizer.zero_grad()
        loss_on(model, x, y).backward()
        optimizer.step()
        assert sparsifier.report().ok
    assert_same(book, model, sparsifier)


def test_masks_do_change_in_these_runs() -> None:
    """The comparison above would be empty if no mask ever moved."""
    *_, model, optimizer, sparsifier = pair(OPTIMIZERS["sgd momentum decay"])
    sparsifier.telemetry()
    for x, y in batches():
        optimizer.zero_grad()
        loss_on(model, x, y).backward()
        optimizer.step()
    assert sparsifier.telemetry().sad > 20


@pytest.mark.parametrize("kind", ["sgd momentum decay", "adamw"])
def test_accumulation_adds_the_term_once(kind: str) -> None:
    book, book_optimizer, model, optimizer, sparsifier = pair(OPTIMIZERS[kind])
    data = batches()
    for start in range(0, len(data), 4):
        book_optimizer.zero_grad()
        optimizer.zero_grad()
        for x, y in data[start : start + 4]:
            book.backward(lambda net, x=x, y=y: loss_on(net, x, y) / 4)
            (loss_on(model, x, y) / 4).backward()
        book.add_term()
        book_optimizer.step()
        optimizer.step()
    assert_same(book, model, sparsifier)


def test_a_weight_used_three_times_gets_the_term_once() -> None:
    book, book_optimizer, model, optimizer, sparsifier = pair(OPTIMIZERS["sgd momentum decay"])

    def thrice(net, x, y):
        return ((net(x) - y) ** 2).mean() + net(2 * x).pow(2).mean() + net(-x).abs().mean()

    for x, y in batches():
        book_optimizer.zero_grad()
        book.backward(lambda net, x=x, y=y: thrice(net, x, y))
        book.add_term()
        book_optimizer.step()
        optimizer.zero_grad()
        thrice(model, x, y).backward()
        optimizer.step()
    assert_same(book, model, sparsifier)


def test_clipping_acts_on_the_loss_gradient() -> None:
    book, book_optimizer, model, optimizer, sparsifier = pair(OPTIMIZERS["adamw"])
    for x, y in batches():
        book_optimizer.zero_grad()
        book.backward(lambda net, x=x, y=y: loss_on(net, x, y))
        nn.utils.clip_grad_norm_(book.parameters(), 0.05)
        book.add_term()
        book_optimizer.step()
        optimizer.zero_grad()
        loss_on(model, x, y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
    assert_same(book, model, sparsifier)


@pytest.mark.parametrize("kind", ["sgd momentum decay", "adamw", "adamw fused", "sgd fused"])
def test_grad_scaler_does_not_change_the_term(kind: str) -> None:
    book, book_optimizer, model, optimizer, sparsifier = pair(OPTIMIZERS[kind], decay=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3)
    for x, y in batches():
        book_optimizer.zero_grad()
        book.backward(lambda net, x=x, y=y: loss_on(net, x, y))
        book.add_term()
        book_optimizer.step()
        optimizer.zero_grad()
        scaler.scale(loss_on(model, x, y)).backward()
        scaler.step(optimizer)
        scaler.update()
    with sparsifier.dense_weights():
        for name, value in book.net.named_parameters():
            assert_close(model.get_parameter(name), value, rtol=2e-5, atol=2e-6)


def test_a_step_skipped_by_the_scaler_changes_nothing() -> None:
    for kind in ("adamw", "adamw fused"):
        *_, model, optimizer, sparsifier = pair(OPTIMIZERS[kind])
        before = copy.deepcopy(sparsifier.state_dict()["weights"])
        scaler = torch.amp.GradScaler("cpu")
        x, y = batches()[0]
        scaler.scale(loss_on(model, x, y) * float("inf")).backward()
        scaler.step(optimizer)
        scaler.update()
        for name, state in sparsifier.state_dict()["weights"].items():
            assert_close(state, before[name], rtol=0, atol=0)
        assert sparsifier.report().ok


def test_learning_rate_schedules_are_followed() -> None:
    book, book_optimizer, model, optimizer, sparsifier = pair(OPTIMIZERS["sgd momentum decay"])
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(o, 0.2, total_steps=12)
        for o in (book_optimizer, optimizer)
    ]
    for x, y in batches():
        book_optimizer.zero_grad()
        book.backward(lambda net, x=x, y=y: loss_on(net, x, y))
        book.add_term()
        book_optimizer.step()
        optimizer.zero_grad()
        loss_on(model, x, y).backward()
        optimizer.step()
        for schedule in schedules:
            schedule.step()
    assert_same(book, model, sparsifier)


def test_several_parameter_groups() -> None:
    def make(parameters):
        first, *rest = list(parameters)
        return torch.optim.SGD([{"params": [first], "lr": 0.3}, {"params": rest}], 0.05)

    book, book_optimizer, model, optimizer, sparsifier = pair(make)
    for x, y in batches():
        book_optimizer.zero_grad()
        book.backward(lambda net, x=x, y=y: loss_on(net, x, y))
        book.add_term()
        book_optimizer.step()
        optimizer.zero_grad()
        loss_on(model, x, y).backward()
        optimizer.step()
    assert_same(book, model, sparsifier)


@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize("kind", ["sgd momentum decay", "adamw", "adamw fused"])
def test_closure_with_forward_inside_the_step(kind: str, positional: bool) -> None:
    book, book_optimizer, model, optimizer, sparsifier = pair(OPTIMIZERS[kind])
    for x, y in batches():
        book_optimizer.zero_grad()
        expected = book.backward(lambda net, x=x, y=y: loss_on(net, x, y))
        book.add_term()
        book_optimizer.step()

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = loss_on(model, x, y)
            loss.backward()
            return loss

        loss = optimizer.step(closure) if positional else optimizer.step(closure=closure)
        assert_close(loss.detach(), expected, rtol=0, atol=0)
    assert_same(book, model, sparsifier)


def test_lbfgs_calls_the_closure_many_times() -> None:
    def make(parameters):
        return torch.optim.LBFGS(parameters, lr=0.2, max_iter=4, history_size=3)

    book, book_optimizer, model, optimizer, sparsifier = pair(make)
    x, y = batches(1)[0]

    def book_closure():
        book_optimizer.zero_grad()
        loss = book.backward(lambda net: loss_on(net, x, y))
        book.add_term()
        return loss

    calls = []

    def closure():
        calls.append(nm.verify(model, {"0": "2:4", "2": "2:4"}).ok)
        optimizer.zero_grad()
        loss = loss_on(model, x, y)
        loss.backward()
        return loss

    for _ in range(3):
        book_optimizer.step(book_closure)
        optimizer.step(closure)
    assert len(calls) > 6
    assert all(calls)
    assert_same(book, model, sparsifier)


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimization (arXiv 2010.01412), around plain SGD."""

    def __init__(self, parameters, lr: float, rho: float = 0.05) -> None:
        super().__init__(list(parameters), {"lr": lr, "rho": rho})

    @torch.no_grad()
    def step(self, closure=None):
        closure = torch.enable_grad()(closure)
        old = {}
        for group in self.param_groups:
            for p in group["params"]:
                old[p] = p.detach().clone()
                p.add_(p.grad, alpha=group["rho"])
        loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.data = old[p]
                p.add_(p.grad, alpha=-group["lr"])
        return loss


def test_sam_moves_the_weights_before_the_closure() -> None:
    book, book_optimizer, model, optimizer, sparsifier = pair(lambda p: SAM(p, 0.1))
    for x, y in batches(6):
        book_optimizer.zero_grad()
        book.backward(lambda net, x=x, y=y: loss_on(net, x, y))

        def book_closure(x=x, y=y):
            book_optimizer.zero_grad()
            loss = book.backward(lambda net: loss_on(net, x, y))
            book.add_term()
            return loss

        book_optimizer.step(book_closure)
        optimizer.zero_grad()
        loss_on(model, x, y).backward()

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = loss_on(model, x, y)
            loss.backward()
            return loss

        optimizer.step(closure)
        assert sparsifier.report().ok
    assert_same(book, model, sparsifier)


# Outside writes.


def train(model: nn.Module, optimizer, data) -> None:
    for x, y in data:
        optimizer.zero_grad()
        loss_on(model, x, y).backward()
        optimizer.step()


@pytest.mark.parametrize(
    "write",
    [
        lambda m, new: m.load_state_dict(new.state_dict()),
        lambda m, new: m[0].weight.data.copy_(new[0].weight.data),
        lambda m, new: nn.init.constant_(m[0].weight, 0.25),
        lambda m, new: m[0].weight.data.mul_(0.5),
        lambda m, new: m[0].weight.data.zero_(),
        lambda m, new: torch.no_grad()(m[0].weight.copy_)(new[0].weight),
        lambda m, new: setattr(m[0].weight, "data", new[0].weight.data.clone()),
    ],
    ids=["load_state_dict", "data.copy_", "init", "data.mul_", "data.zero_", "copy_", "data ="],
)
def test_what_is_written_from_outside_becomes_the_dense_weight(write) -> None:
    *_, model, optimizer, sparsifier = pair(OPTIMIZERS["sgd"])
    train(model, optimizer, batches(5))
    write(model, mlp(seed=7))
    written = model[0].weight.detach().clone()
    with sparsifier.dense_weights():
        assert_close(model[0].weight.detach(), written, rtol=0, atol=0)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert sparsifier.report().ok
    with sparsifier.dense_weights():
        assert_close(model[0].weight.detach(), written, rtol=0, atol=0)


@pytest.mark.parametrize(
    "write",
    [
        lambda w, new: w.copy_(new),
        lambda w, new: w.data.copy_(new),
    ],
    ids=["copy_", "data.copy_"],
)
def test_a_write_between_steps_is_noticed_by_the_step_itself(write) -> None:
    *_, model, optimizer, sparsifier = pair(OPTIMIZERS["sgd"])
    train(model, optimizer, batches(5))
    x, y = batches(1)[0]
    optimizer.zero_grad()
    loss_on(model, x, y).backward()
    grad = model[0].weight.grad.clone()
    new = mlp(seed=7)[0].weight.detach()
    with torch.no_grad():
        write(model[0].weight, new)
    optimizer.step()
    with sparsifier.dense_weights():
        # What is written has no pruned part: there is no term.
        assert_close(model[0].weight.detach(), new - 0.1 * grad)
    assert sparsifier.report().ok


def test_the_sparse_weight_stays_where_it_is_in_memory() -> None:
    *_, model, optimizer, _ = pair(OPTIMIZERS["adamw"])
    views = [parameter.data for parameter in model.parameters()]
    state = model.state_dict()
    train(model, optimizer, batches(3))
    for view, kept, parameter in zip(views, state.values(), model.parameters(), strict=True):
        assert parameter.data_ptr() == view.data_ptr()
        assert_close(kept, parameter.detach(), rtol=0, atol=0)


def test_a_hook_that_replaces_the_memory_after_the_update() -> None:
    def clamp(optimizer, *_):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.data = parameter.data.clamp(-0.05, 0.05)

    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.register_step_post_hook(clamp)
    sparsifier = nm.sparsify(model, optimizer, "2:4")
    train(model, optimizer, batches(3))
    with sparsifier.dense_weights() as dense:
        assert all((weight.abs() <= 0.05).all() for weight in dense.values())
        assert all(int((weight != 0).sum()) == weight.numel() for weight in dense.values())
    assert sparsifier.report().ok


def test_loading_the_models_own_weights_keeps_the_dense_ones() -> None:
    *_, model, optimizer, sparsifier = pair(OPTIMIZERS["sgd"])
    train(model, optimizer, batches(5))
    dense = sparsifier.state_dict()["weights"]["0.weight"]["dense_weight"].clone()
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    train(model, optimizer, [])
    kept = sparsifier.state_dict()["weights"]["0.weight"]["dense_weight"]
    assert_close(kept, dense, rtol=0, atol=0)


def test_a_replaced_parameter_is_an_error_that_names_the_layer() -> None:
    *_, model, optimizer, _sparsifier = pair(OPTIMIZERS["sgd"])
    model.load_state_dict(mlp(seed=7).state_dict(), assign=True)
    with pytest.raises(RuntimeError, match=r"'0\.weight' holds another Parameter"):
        optimizer.step()


def test_an_exception_inside_the_step_loses_nothing() -> None:
    *_, model, optimizer, sparsifier = pair(OPTIMIZERS["sgd"])
    dense = sparsifier.state_dict()["weights"]["0.weight"]["dense_weight"].clone()
    model[0].weight.grad = torch.zeros_like(model[0].weight)
    optimizer.param_groups[0]["lr"] = "no number"
    with pytest.raises((TypeError, RuntimeError)):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1
    assert sparsifier.report().ok
    kept = sparsifier.state_dict()["weights"]["0.weight"]["dense_weight"]
    assert_close(kept, dense, rtol=0, atol=0)


# Moves and casts.


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_cast_model_takes_its_dense_weights_along(dtype: torch.dtype) -> None:
    *_, model, optimizer, sparsifier = pair(OPTIMIZERS["sgd"])
    train(model, optimizer, batches(3))
    dense = sparsifier.state_dict()["weights"]["0.weight"]["dense_weight"].clone()
    model.to(dtype)
    moved = sparsifier.state_dict()["weights"]["0.weight"]["dense_weight"]
    assert moved.dtype == dtype
    assert_close(moved, dense.to(dtype), rtol=0, atol=0)
    train(model, optimizer, [(x.to(dtype), y.to(dtype)) for x, y in batches(3)])
    assert sparsifier.report().ok


def test_channels_last_after_sparsify() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier = nm.sparsify(model, optimizer, "2:4")
    model.to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last)
    for _ in range(3):
        model(x).sum().backward()
        optimizer.step()
    assert sparsifier.report().ok


# Checkpoints.


@pytest.mark.parametrize("kind", OPTIMIZERS.keys())
@pytest.mark.parametrize("model_first", [True, False])
@pytest.mark.parametrize("done", [0, 5])
def test_resume_is_bit_exact(kind: str, model_first: bool, done: int) -> None:
    make, data = OPTIMIZERS[kind], batches()
    *_, model, optimizer, sparsifier = pair(make)
    train(model, optimizer, data[:done])
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    train(model, optimizer, data[done:])

    *_, again, optimizer_again, sparsifier_again = pair(make)
    torch.manual_seed(99)
    saved = torch.load(file, weights_only=True)
    parts = [(again, "model"), (optimizer_again, "optimizer")]
    for part, name in parts if model_first else reversed(parts):
        part.load_state_dict(saved[name])
    assert sparsifier_again.steps == done
    train(again, optimizer_again, data[done:])
    for name, value in model.named_parameters():
        assert_close(again.get_parameter(name), value, rtol=0, atol=0)
    for name, state in sparsifier.state_dict()["weights"].items():
        mine = sparsifier_again.state_dict()["weights"][name]
        assert_close(mine["dense_weight"], state["dense_weight"], rtol=0, atol=0)


def test_resume_of_a_fixed_mask() -> None:
    def build():
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        return model, optimizer, nm.sparsify(model, optimizer, "2:4", method="fixed")

    data = batches()
    model, optimizer, _ = build()
    train(model, optimizer, data[:5])
    saved = copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    train(model, optimizer, data[5:])
    again, optimizer_again, _ = build()
    again.load_state_dict(saved["model"])
    optimizer_again.load_state_dict(saved["optimizer"])
    train(again, optimizer_again, data[5:])
    for name, value in model.named_parameters():
        assert_close(again.get_parameter(name), value, rtol=0, atol=0)


def test_a_fixed_mask_is_taken_again_from_loaded_weights() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier = nm.sparsify(model, optimizer, "2:4", method="fixed")
    loaded = mlp(seed=7)
    expected = nm.Pattern(2, 4).mask(loaded[0].weight.detach().abs())
    model.load_state_dict(loaded.state_dict())
    train(model, optimizer, batches(3))
    assert sparsifier.report().ok
    assert not model[0].weight[~expected].any()


def test_the_state_of_two_optimizers_is_not_shared_after_loading() -> None:
    *_, model, optimizer, _sparsifier = pair(OPTIMIZERS["adamw"])
    train(model, optimizer, batches(3))
    *_, _other, other_optimizer, other_sparsifier = pair(OPTIMIZERS["adamw"])
    other_optimizer.load_state_dict(optimizer.state_dict())
    before = other_sparsifier.state_dict()["weights"]["0.weight"]["dense_weight"].clone()
    train(model, optimizer, batches(3))
    after = other_sparsifier.state_dict()["weights"]["0.weight"]["dense_weight"]
    assert_close(after, before, rtol=0, atol=0)


def test_a_sparse_checkpoint_loads_into_a_plain_optimizer() -> None:
    *_, model, optimizer, _sparsifier = pair(OPTIMIZERS["adamw"])
    train(model, optimizer, batches(3))
    plain = mlp()
    plain_optimizer = torch.optim.AdamW(plain.parameters(), 1e-2)
    plain.load_state_dict(model.state_dict())
    plain_optimizer.load_state_dict(optimizer.state_dict())
    train(plain, plain_optimizer, batches(2))


def test_the_sparsifiers_own_state_dict() -> None:
    *_, model, optimizer, sparsifier = pair(OPTIMIZERS["sgd"])
    train(model, optimizer, batches(4))
    *_, again, _optimizer, other = pair(OPTIMIZERS["sgd"])
    other.load_state_dict(copy.deepcopy(sparsifier.state_dict()))
    assert other.steps == 4
    assert_close(again[0].weight, model[0].weight, rtol=0, atol=0)
    with pytest.raises(ValueError, match="missing"):
        other.load_state_dict({"steps": 0, "weights": {}})


# Averages.


def test_an_average_of_sparse_weights_is_not_nm_but_one_of_dense_weights_can_be_made_so() -> None:
    *_, model, optimizer, sparsifier = pair(OPTIMIZERS["sgd momentum decay"])
    plain = torch.optim.swa_utils.AveragedModel(model)
    dense = torch.optim.swa_utils.AveragedModel(model)
    for x, y in batches():
        train(model, optimizer, [(x, y)])
        plain.update_parameters(model)
        with sparsifier.dense_weights():
            dense.update_parameters(model)
    assert not nm.verify(plain, "2:4").ok
    assert sparsifier.report().ok
    sparsifier.project_(dense)
    assert nm.verify(dense, {"0": "2:4", "2": "2:4"}).ok
    with sparsifier.dense_weights(), torch.no_grad():
        model[0].weight.fill_(0.5)
    assert int((model[0].weight == 0.5).sum()) == model[0].weight.numel() // 2


# The model is left as it was.


def test_the_model_stays_plain() -> None:
    *_, model, _optimizer, _sparsifier = pair(OPTIMIZERS["sgd"])
    plain = mlp()
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    twin = copy.deepcopy(model)
    assert_close(twin[0].weight, model[0].weight, rtol=0, atol=0)
    file = io.BytesIO()
    torch.save(model, file)


def test_remove_lets_the_model_go() -> None:
    *_, model, optimizer, sparsifier = pair(OPTIMIZERS["sgd"])
    sparsifier.remove()
    train(model, optimizer, batches(2))
    assert not nm.verify(model, "2:4").ok
    nm.sparsify(model, optimizer, "2:4")


def test_one_sparsifier_a_weight() -> None:
    *_, model, optimizer, _sparsifier = pair(OPTIMIZERS["sgd"])
    with pytest.raises(ValueError, match="another sparsifier"):
        nm.sparsify(model, optimizer, "1:4")


def test_a_forgotten_optimizer_frees_its_weights() -> None:
    model = mlp()
    nm.sparsify(model, torch.optim.SGD(model.parameters(), 0.1), "2:4")
    gc.collect()
    nm.sparsify(model, torch.optim.SGD(model.parameters(), 0.1), "2:4")


def test_a_compiled_model_follows_the_paper() -> None:
    book, book_optimizer, model, optimizer, sparsifier = pair(OPTIMIZERS["sgd momentum decay"])
    compiled = torch.compile(model, backend="aot_eager")
    for x, y in batches():
        book_optimizer.zero_grad()
        book.backward(lambda net, x=x, y=y: loss_on(net, x, y))
        book.add_term()
        book_optimizer.step()
        optimizer.zero_grad()
        loss_on(compiled, x, y).backward()
        optimizer.step()
    with sparsifier.dense_weights():
        for name, value in book.net.named_parameters():
            assert_close(model.get_parameter(name), value)


def test_a_model_compiled_before_sparsify() -> None:
    model = torch.compile(mlp(), backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier = nm.sparsify(model, optimizer, {"0": "2:4"})
    assert list(sparsifier.weights()) == ["0.weight"]


# Errors.


def test_nan_is_an_error_that_names_the_layer() -> None:
    *_, model, optimizer, _sparsifier = pair(OPTIMIZERS["sgd"])
    model[2].weight.grad = torch.full_like(model[2].weight, float("nan"))
    with pytest.raises(ValueError, match=r"'2\.weight' \[8, 32\].*NaN"):
        optimizer.step()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_are_refused_at_the_start(value: float) -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight[3, 5] = value
    with pytest.raises(ValueError, match=r"'0\.weight' \[32, 16\].*NaN or infinite"):
        nm.sparsify(model, torch.optim.SGD(model.parameters(), 0.1))


def test_nothing_to_sparsify_is_an_error_with_the_reasons() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    with pytest.raises(ValueError, match=r"no weight of the model can be 2:4.*no multiple of 4"):
        nm.sparsify(model, torch.optim.SGD(model.parameters(), 0.1))


def test_unknown_methods_and_options_say_what_is_known() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"unknown method 'srste'.*did you mean 'sr_ste'"):
        nm.sparsify(model, optimizer, method="srste")
    with pytest.raises(ValueError, match=r"has no option 'decy'; did you mean 'decay'"):
        nm.sparsify(model, optimizer, decy=1.0)


def test_dense_method_changes_nothing() -> None:
    model, plain = mlp(), mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    plain_optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    sparsifier = nm.sparsify(model, optimizer, "2:4", method="dense")
    train(model, optimizer, batches(3))
    train(plain, plain_optimizer, batches(3))
    assert_close(model[0].weight, plain[0].weight, rtol=0, atol=0)
    assert not sparsifier.weights()


def test_frozen_and_foreign_weights_are_reported() -> None:
    model = mlp()
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([model[4].weight, *model[2].parameters()], 0.1)
    sparsifier = nm.sparsify(model, optimizer, include="*")
    assert sorted(sparsifier.weights()) == ["2.weight", "4.weight"]
    assert {row.name: row.reason for row in sparsifier.report().rows}["0.weight"].startswith(
        "it is frozen"
    )


def test_import_of_the_face_is_light() -> None:
    import subprocess
    import sys

    code = "import sys, nmsparsity; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
