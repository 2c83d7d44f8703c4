"""The native kernels against torch in double precision, on every instruction set of the machine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import nmsparsity as nm
from nmsparsity import native
from nmsparsity.kernels import NativeKernel, Problem
from nmsparsity.kernels.epilogue import ACTIVATIONS
from nmsparsity.kernels.plan import Plan, first_cache, plans
from nmsparsity.kernels.problem import memory_format
from nmsparsity.kernels.reference import multiply
from nmsparsity.native.library import lanes
from nmsparsity.native.product import COLUMNS, TOKENS, Product
from nmsparsity.packed import PackedWeight

EVERY = [
    *(Plan(COLUMNS, vectors, 8) for vectors in range(1, 9)),
    *(Plan(TOKENS, pixels, 8 * pixels, turns) for pixels in range(1, 9) for turns in (1, 3)),
]
PATTERNS = ["2:4", "4:8", "1:4", "2:8", "1:8", "1:16", "3:4", "3:8", "1:3", "5:12", "1:64", "8:8"]


@pytest.fixture(params=native.isas())
def isa(request):
    native.choose(request.param)
    yield request.param
    native.choose("")


def pruned(shape: tuple[int, ...], pattern: nm.Pattern, kind: str = "normal") -> Tensor:
    """A weight that follows the pattern; short last groups too."""
    weight = torch.randn(shape)
    if kind == "few":  # at most N, and kept zeros
        weight = weight * (torch.rand(shape) < 0.3)
    if shape[1] % pattern.m:
        padded = torch.zeros(shape[0], -(-shape[1] // pattern.m) * pattern.m, *shape[2:])
        padded[:, : shape[1]] = weight
        return (padded * pattern.mask(padded.abs()))[:, : shape[1]].contiguous()
    return weight * pattern.mask(weight.abs())


def truth(problem: Problem, weight: Tensor, x: Tensor, bias, activation: str, residual) -> Tensor:
    result = multiply(problem, weight.double(), x.double(), None if bias is None else bias.double())
    if residual is not None:
        result = result + residual.double()
    return ACTIVATIONS[activation](result)


def assert_near(found: Tensor, expected: Tensor, weight: Tensor, x: Tensor) -> None:
    """Within rounding of the sum of the largest products: there may be cancellation."""
    terms = weight[0].numel() * float(weight.abs().max()) * float(x.abs().max()) if len(x) else 0.0
    assert_close(found.double(), expected, rtol=2e-6, atol=5e-7 * (terms + 3))


@st.composite
def cases(draw):
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    channels = draw(st.sampled_from([1, 3, 8, 16, 24, 32, 64, 80]))
    rows = draw(st.sampled_from([1, 5, 16, 24, 33]))
    kernel = draw(st.sampled_from([(1, 1), (1, 1), (3, 3), (1, 5), (2, 3)]))
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    stride, dilation = draw(pair), draw(pair)
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    reach = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    height, width = (max(r, 1) + draw(st.integers(0, 18)) for r in reach)
    return {
        "problem": Problem(
            "conv2d",
            (rows * groups, channels, *kernel),
            nm.Pattern.parse(draw(st.sampled_from(PATTERNS))),
            torch.float32,
            stride,
            padding,
            dilation,
            groups,
        ),
        "input": (draw(st.integers(1, 3)), channels * groups, height, width),
        "last": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "residual": draw(st.booleans()),
        "activation": draw(st.sampled_from(list(ACTIVATIONS))),
        "kind": draw(st.sampled_from(["normal", "few"])),
        "seed": draw(st.integers(0, 2**16)),
    }


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(case=cases())
def test_convolutions_of_any_shape(isa, case):
    torch.manual_seed(case["seed"])
    problem: Problem = case["problem"]
    form = torch.channels_last if case["last"] else torch.contiguous_format
    weight = pruned(problem.shape, problem.pattern, case["kind"])
    x = torch.randn(case["input"]).contiguous(memory_format=form)
    form = memory_format(x)
    bias = torch.randn(problem.outputs) if case["bias"] else None
    shape = problem.output_shape(x.shape)
    residual = torch.randn(shape).contiguous(memory_format=form) if case["residual"] else None
    kernel = NativeKernel()
    packed = PackedWeight.pack(weight, problem.pattern)
    tiles = kernel.tile(problem, packed)
    found = kernel.run(problem, tiles, x, bias, case["activation"], residual)
    assert found.is_contiguous(memory_format=form)
    expected = truth(problem, weight, x, bias, case["activation"], residual)
    assert_near(found, expected, weight, x)
    back = kernel.untile(problem, tiles)
    assert torch.equal(back.unpack().view(torch.int32), packed.unpack().view(torch.int32))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("tokens", [0, 1, 2, 5, 16, 130])
def test_linear_of_any_length(isa, pattern, tokens):
    torch.manual_seed(0)
    problem = Problem("linear", (70, 96), nm.Pattern.parse(pattern), torch.float32)
    weight, x, bias = pruned((70, 96), problem.pattern), torch.randn(tokens, 96), torch.randn(70)
    kernel = NativeKernel()
    tiles = kernel.tile(problem, PackedWeight.pack(weight, problem.pattern))
    found = kernel.run(problem, tiles, x, bias, "gelu")
    assert_near(found, truth(problem, weight, x, bias, "gelu", None), weight, x)
    assert kernel.run(problem, tiles, x.view(1, tokens, 1, 96)).shape == (1, tokens, 1, 70)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("pattern", ["2:4", "1:16", "3:8"])
def test_every_plan_and_thread_count_gives_the_same_bits(isa, last, kernel_size, pattern):
    torch.manual_seed(0)
    shape = (40, 64, kernel_size, kernel_size)
    problem = Problem("conv2d", shape, nm.Pattern.parse(pattern), torch.float32)
    weight = pruned(shape, problem.pattern)
    x = torch.randn(2, 64, 15, 22)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    kernel = NativeKernel()
    tiles = kernel.tile(problem, PackedWeight.pack(weight, problem.pattern))
    tried: list[Plan] = []

    class Every:
        """Hands out one plan after the other."""

        def plan(self, key, product, width):
            known = [*plans(product, width), *EVERY]
            tried.append(known[len(tried) % len(known)])
            return tried[-1]

    kernel._planner = Every()  # type: ignore[assignment]
    outputs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        outputs += [kernel.run(problem, tiles, x, None, "silu") for _ in range(14)]
    assert len(set(tried)) >= 8
    assert all(torch.equal(outputs[0], other) for other in outputs)


def test_nan_and_infinity_reach_their_own_pixels_only(isa):
    torch.manual_seed(0)
    problem = Problem("conv2d", (16, 16, 1, 1), nm.Pattern(2, 4), torch.float32)
    weight = pruned(problem.shape, problem.pattern)
    kernel = NativeKernel()
    tiles = kernel.tile(problem, PackedWeight.pack(weight, problem.pattern))
    for last in (False, True):
        form = torch.channels_last if last else torch.contiguous_format
        x = torch.randn(1, 16, 9, 9).contiguous(memory_format=form)
        clean = kernel.run(problem, tiles, x)
        x[0, 5, 3, 4], x[0, 9, 7, 7] = torch.nan, torch.inf
        found = kernel.run(problem, tiles, x, None, "relu")
        hit = torch.zeros(9, 9, dtype=torch.bool)
        hit[3, 4] = hit[7, 7] = True
        assert_close(found[..., ~hit], clean[..., ~hit].relu(), rtol=0, atol=0)
        kept = weight[:, 5, 0, 0] != 0
        assert torch.isnan(found[0, kept, 3, 4]).all()
        assert not torch.isfinite(found[0, weight[:, 9, 0, 0] > 0, 7, 7]).any()


def test_odd_memory_is_read_right(isa):
    problem = Problem("linear", (20, 32), nm.Pattern(2, 4), torch.float32)
    weight = pruned((20, 32), problem.pattern)
    kernel = NativeKernel()
    tiles = kernel.tile(problem, PackedWeight.pack(weight, problem.pattern))
    buffer = torch.randn(1 + 33 * 32)
    x = buffer[1:].view(33, 32)  # 4 bytes off every alignment
    expected = truth(problem, weight, x, None, "none", None)
    assert_near(kernel.run(problem, tiles, x), expected, weight, x)


def test_activations_are_exact_to_rounding(isa):
    problem = Problem("linear", (16, 16), nm.Pattern(1, 1), torch.float32)
    kernel = NativeKernel()
    tiles = kernel.tile(problem, PackedWeight.pack(torch.eye(16), problem.pattern))
    x = torch.cat([torch.linspace(-30, 30, 16 * 499), torch.tensor([0.0, -0.0, 1e-20, -1e30] * 4)])
    x = x.view(-1, 16)
    for name, activation in ACTIVATIONS.items():
        found = kernel.run(problem, tiles, x, None, name)
        assert_close(found.double(), activation(x.double()), rtol=3e-6, atol=3e-7)


def test_what_is_kept_between_calls_is_not_mixed_up(isa):
    """Shapes, formats, epilogues and instruction sets in turn, from two threads at once."""
    torch.manual_seed(0)
    problem = Problem("conv2d", (16, 16, 3, 3), nm.Pattern(2, 4), torch.float32, padding=(1, 1))
    kernel, weight = NativeKernel(), pruned((16, 16, 3, 3), nm.Pattern(2, 4))
    packed, bias = PackedWeight.pack(weight, problem.pattern), torch.randn(16)
    tiles, call = kernel.tile(problem, packed), kernel.prepare(problem)
    cases = []
    for shape in [(1, 16, 5, 5), (2, 16, 5, 5), (1, 16, 7, 3), (0, 16, 5, 5)]:
        for form in (torch.contiguous_format, torch.channels_last):
            for activation in ("none", "relu"):
                x = torch.randn(shape).contiguous(memory_format=form)
                for rest in ((None, activation), (bias, activation, torch.randn_like(x))):
                    expected = kernel.run(problem, tiles, x, *rest)
                    cases.append((x, rest, expected))

    def all_right(order):
        for number in order:
            x, rest, expected = cases[number]
            found = call(tiles, x, *rest)
            if not (torch.equal(found, expected) and found.stride() == expected.stride()):
                return False
        return True

    orders = [torch.randint(len(cases), (400,)).tolist() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(all_right, orders))
    other = next(name for name in (*native.isas(), "") if name != isa)
    native.choose(other)
    if lanes() != tiles[0].shape[2]:
        with pytest.raises(ValueError, match="load its state_dict here"):
            call(tiles, cases[0][0])


def test_what_is_kept_for_many_lengths_is_bounded():
    problem = Problem("linear", (16, 16), nm.Pattern(2, 4), torch.float32)
    kernel, call = NativeKernel(), NativeKernel().prepare(problem)
    tiles = kernel.tile(problem, PackedWeight.pack(torch.zeros(16, 16), problem.pattern))
    for length in range(200):
        assert call(tiles, torch.zeros(length, 16)).shape == (length, 16)
    assert len(call._known) <= 64


def test_what_it_refuses_and_why():
    kernel = NativeKernel()
    half = Problem("linear", (8, 16), nm.Pattern(2, 4), torch.bfloat16)
    assert "torch.float32" in str(kernel.refuses(half))
    problem = Problem("linear", (8, 16), nm.Pattern(2, 4), torch.float32, name="fc")
    assert kernel.refuses(problem) is None
    tiles = kernel.tile(problem, PackedWeight.pack(torch.zeros(8, 16), problem.pattern))
    with pytest.raises(ValueError, match=r"'fc'.*runs on the CPU, the input is on meta"):
        kernel.run(problem, tiles, torch.zeros(2, 16, device="meta"))
    with pytest.raises(ValueError, match=r"'fc': an input of shape \[2, 15\]"):
        kernel.run(problem, tiles, torch.zeros(2, 15))
    if lanes() != 4:
        native.choose("portable")
        try:
            with pytest.raises(ValueError, match=r"'fc'.*load its state_dict"):
                kernel.run(problem, tiles, torch.zeros(2, 16))
        finally:
            native.choose("")


@pytest.mark.parametrize(
    ("lanes", "pixels", "modes"),
    [
        (16, 1, {TOKENS}),
        (16, 31, {TOKENS}),
        (16, 32, {TOKENS, COLUMNS}),
        (8, 3, {TOKENS}),  # Fewer than half of the lanes would have a pixel.
        (8, 4, {COLUMNS}),  # AVX2 takes five instructions to pick among 16 inputs.
        (8, 3136, {COLUMNS}),
        (4, 1, {TOKENS}),
    ],
)
@pytest.mark.parametrize("slots", [1, 8])
def test_what_is_worth_trying(lanes: int, pixels: int, modes: set[int], slots: int) -> None:
    product = Product(images=1, out_height=1, out_width=pixels, slots=slots, windows=64)
    found = plans(product, lanes)
    assert {plan.mode for plan in found} == modes
    assert len(set(found)) == len(found)
    for plan in found:
        assert plan.depth * slots % 8 == 0
        assert plan.depth <= 64
        inputs = 64 * plan.depth * plan.vectors * (lanes if plan.mode == COLUMNS else 1)
        assert inputs <= max(2 * first_cache(), 64 * 8 * plan.vectors * lanes)


def test_the_first_cache_of_an_unknown_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Path) -> str:
        raise FileNotFoundError(str(self))

    monkeypatch.setattr(Path, "read_text", missing)
    assert first_cache.__wrapped__() == 32768
