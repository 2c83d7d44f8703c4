"""The native kernel against `Pattern.mask`, for every instruction set of this machine."""

import os
import shutil
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nmsparsity import native
from nmsparsity.native import library
from nmsparsity.pattern import Pattern

ROOT = Path(__file__).parents[1]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def _best_afterwards():
    threads = torch.get_num_threads()
    yield
    if native.available():
        native.choose("")
    torch.set_num_threads(threads)


@pytest.fixture(params=native.isas())
def isa(request):
    native.choose(request.param)
    return request.param


def values(kind: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Weights that make ranking hard: ties, zeros of both signs, subnormals, extremes."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(shape, generator=generator)
    if kind == "ties":
        normal = (normal * 2).round()
    elif kind == "zeros":
        normal = normal * (torch.rand(shape, generator=generator) < 0.3)
        normal = torch.where(torch.rand(shape, generator=generator) < 0.5, -normal, normal)
    elif kind == "tiny":
        normal = normal * torch.finfo(dtype).tiny / 4
    elif kind == "huge":
        normal = normal.sign() * torch.finfo(dtype).max
    return normal.to(dtype)


def shifted(tensor: Tensor, by: int) -> Tensor:
    """The same values in memory that begins `by` elements into its storage."""
    room = torch.zeros(tensor.numel() + by, dtype=tensor.dtype)
    return room[by:].view(tensor.shape).copy_(tensor)


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def truth(weight: Tensor, n: int, m: int, by_magnitude: bool = True) -> tuple[Tensor, Tensor]:
    mask = Pattern(n, m).mask(weight.abs() if by_magnitude else weight)
    return mask, torch.where(mask, weight, torch.zeros((), dtype=weight.dtype))


@st.composite
def cases(draw):
    m = draw(st.integers(1, 64))
    return {
        "n": draw(st.integers(1, m)),
        "m": m,
        "shape": (
            draw(st.integers(0, 20)),
            draw(st.one_of(st.integers(0, 3), st.just(m), st.integers(m, 3 * m + 7))),
            draw(st.one_of(st.just(1), st.sampled_from((0, 2, 3, 4, 8, 9, 16, 17, 25, 33)))),
        ),
        "dtype": draw(st.sampled_from(DTYPES)),
        "kind": draw(st.sampled_from(("normal", "ties", "zeros", "tiny", "huge"))),
        "seed": draw(st.integers(0, 99)),
        "shift": draw(st.integers(0, 3)),
        "by_magnitude": draw(st.booleans()),
        "masked": draw(st.booleans()),
    }


@settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # It does not change in between.
)
@given(case=cases())
def test_projection_is_that_of_the_pattern(isa, case):
    n, m, flag = case["n"], case["m"], case["by_magnitude"]
    weight = shifted(
        values(case["kind"], case["shape"], case["dtype"], case["seed"]), case["shift"]
    )
    mask, sparse = truth(weight, n, m, flag)
    ours, before = torch.full_like(weight, 7), weight.clone()
    kept = torch.zeros(case["shape"], dtype=torch.bool) if case["masked"] else None
    found = native.project(weight, ours, kept, n=n, m=m, by_magnitude=flag)
    assert found == (int((sparse != 0).sum()), True)
    assert torch.equal(bits(ours), bits(sparse))
    assert torch.equal(bits(weight), bits(before))
    assert kept is None or torch.equal(kept, mask)
    # In place, with nothing else to write.
    assert native.project(weight, weight, n=n, m=m, by_magnitude=flag) == found
    assert torch.equal(bits(weight), bits(sparse))


def test_projection_by_hand(isa):
    weight = torch.tensor([1.0, -3.0, 2.0, -2.0, -0.0, 0.0, 0.0, 5.0, 1.0]).view(1, 9, 1)
    sparse, mask = torch.empty_like(weight), torch.empty_like(weight, dtype=torch.bool)
    assert native.project(weight, sparse, mask=mask, n=2, m=4) == (4, True)
    assert sparse.flatten().tolist() == [0, -3, 2, 0, 0, 0, 0, 5, 1]
    assert mask.flatten().tolist() == [False, True, True, False, True, False, False, True, True]
    assert torch.signbit(sparse.flatten()[4])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 8, 9), (4, 64, 1), (4, 6, 3)])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_non_finite_weights_are_found(isa, dtype, shape, value):
    weight = torch.randn(shape).to(dtype)
    weight[3, 5, -1] = value
    for by_magnitude in (True, False):
        out = torch.empty_like(weight)
        assert not native.project(weight, out, n=2, m=4, by_magnitude=by_magnitude)[1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 16), (16, 64)])
@pytest.mark.parametrize("inner", [1, 9])
def test_big_weights_on_any_number_of_threads(isa, dtype, n, m, inner):
    # 100,000 elements and more are several chunks, of which two threads take some each.
    weight = torch.randn(301, 9 * 48 // inner + 3, inner).to(dtype)
    outputs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        sparse = torch.empty_like(weight)
        found = native.project(weight, sparse, n=n, m=m)
        outputs.append((found, sparse))
    assert outputs[0][0] == outputs[1][0]
    assert torch.equal(outputs[0][1], outputs[1][1])
    assert torch.equal(outputs[0][1], truth(weight, n, m)[1])


def test_the_threads_are_those_of_torch():
    has_symbol = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 10)
    if has_symbol and sys.platform == "linux":
        assert library._parallel_for() is not None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [2e-4, -1.7, 0.0])
def test_the_term_is_that_of_torch(isa, dtype, alpha):
    dense = torch.randn(30, 16, 9).to(dtype)
    weight, grad = torch.empty_like(dense), torch.randn(30, 16, 9).to(dtype)
    batch = native.Batch([native.NativeWeight(weight, dense, (30, 16, 9), 2, 4)])
    (kept,), _ = batch.project()
    sparse = weight.clone()
    expected = torch.add(grad, dense - weight, alpha=alpha)
    assert batch.add_term([alpha], [grad]) == [kept]
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert torch.equal(bits(grad), bits(expected))
    torch.testing.assert_close(grad, expected)
    assert torch.equal(weight, sparse)


def test_halves_are_rounded_to_nearest_even(isa):
    for dtype in (torch.float16, torch.bfloat16):
        # All values of the type, and around them, through grad + 1 * (dense - 0).
        every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
        every = every[torch.isfinite(every)]
        dense, weight = every.clone().view(1, -1, 1), torch.zeros(1, len(every), 1, dtype=dtype)
        grad = every.roll(1).view(1, -1, 1).clone()
        expected = (grad.float() + dense.float()).to(dtype)
        entry = native.NativeWeight(weight, dense, (1, len(every), 1), 1, 1)
        native.Batch([entry]).add_term([1.0], [grad])
        assert torch.equal(bits(grad), bits(expected))


@pytest.mark.parametrize("dtype", DTYPES)
def test_check_sees_every_foreign_element(isa, dtype):
    dense = torch.randn(7, 20, 9).to(dtype)
    weight = torch.empty_like(dense)
    batch = native.Batch([native.NativeWeight(weight, dense, (7, 20, 9), 2, 4)])
    (kept,), _ = batch.project()
    assert batch.check() == [kept] == [int((weight != 0).sum())]
    weight.neg_().neg_()
    assert batch.check() == [kept]  # The zeros are -0.0 now.
    for index in (0, 700, dense.numel() - 1):
        before = weight.flatten()[index].clone()
        weight.view(-1)[index] = 3.0
        assert batch.check() == [-1]
        assert batch.add_term([1.0], [torch.zeros_like(weight)]) == [-1]
        weight.view(-1)[index] = before
    weight.view(-1)[weight.flatten().nonzero()[0]] = 0
    assert batch.check() == [kept - 1]


def weights_of_a_model() -> list[native.NativeWeight]:
    conv = torch.nn.Parameter(torch.randn(24, 12, 3, 3))
    last = torch.nn.Parameter(torch.randn(24, 12, 3, 3).to(memory_format=torch.channels_last))
    linear = torch.nn.Parameter(torch.randn(40, 70))
    shapes = [(24, 12, 9), (24 * 9, 12, 1), (40, 70, 1)]
    patterns = [(2, 4), (1, 3), (5, 16)]
    return [
        native.NativeWeight(weight, weight.detach().clone(), shape, *pattern)
        for weight, shape, pattern in zip((conv, last, linear), shapes, patterns, strict=True)
    ]


def assert_projected(entries: list[native.NativeWeight], found: tuple[list[int], list[int]]):
    for entry, nonzeros in zip(entries, found[0], strict=True):
        mask = Pattern(entry.n, entry.m).mask(entry.dense.abs())
        torch.testing.assert_close(entry.weight.detach(), entry.dense * mask, rtol=0, atol=0)
        assert nonzeros == int((entry.weight != 0).sum())
    assert found[1] == []


def test_a_step_of_many_weights(isa):
    entries = weights_of_a_model()
    batch = native.Batch(entries)
    assert_projected(entries, batch.project())
    for entry in entries:
        entry.weight.grad = torch.randn_like(entry.weight)
    grads = [entry.weight.grad.clone() for entry in entries]
    sparse = [entry.weight.detach().clone() for entry in entries]
    batch.add_term([0.1, 0.2, 0.0], [entry.weight.grad for entry in entries])
    for entry, grad, was, alpha in zip(entries, grads, sparse, (0.1, 0.2, 0.0), strict=True):
        torch.testing.assert_close(entry.weight.grad, grad + alpha * (entry.dense - was))
        assert torch.equal(entry.weight, was)
        entry.dense.sub_(entry.weight.grad)
    assert_projected(entries, batch.project())


def test_a_mask_is_written_where_asked_for(isa):
    for entry in weights_of_a_model():
        mask = torch.zeros_like(entry.weight, dtype=torch.bool)
        masked = native.NativeWeight(entry.weight, entry.dense, entry.shape, entry.n, entry.m, mask)
        native.Batch([masked]).project()
        assert torch.equal(mask, Pattern(entry.n, entry.m).mask(entry.dense.abs()))


def test_a_gradient_of_other_strides_or_dtype(isa):
    entries = weights_of_a_model()[:2]
    batch = native.Batch(entries)
    batch.project()
    grads = [
        torch.zeros(24, 12, 3, 3).to(memory_format=torch.channels_last),
        torch.zeros(24, 12, 3, 3, dtype=torch.float64),
    ]
    terms = [entry.dense - entry.weight.detach() for entry in entries]
    batch.add_term([0.5, 0.5], grads)
    for grad, term in zip(grads, terms, strict=True):
        torch.testing.assert_close(grad, (0.5 * term).to(grad.dtype))


def test_versions_are_raised():
    entries = weights_of_a_model()
    batch = native.Batch(entries)
    tensors = [entry.weight for entry in entries]
    before = [tensor._version for tensor in tensors]
    batch.check()
    assert [tensor._version for tensor in tensors] == before
    batch.project()
    assert all(t._version > was for t, was in zip(tensors, before, strict=True))
    grad = torch.zeros_like(entries[0].weight)
    batch.add_term([1.0, 0.0, 0.0], [grad, None, None])
    assert grad._version == 1


def test_memory_that_moves_is_found_again():
    entries = weights_of_a_model()
    batch = native.Batch(entries)
    for entry in entries:
        entry.weight.data = entry.weight.detach().clone()
        entry.dense.mul_(2)
    assert_projected(entries, batch.project())
    entries[0].weight.data = entries[0].weight.detach().half()
    with pytest.raises(ValueError, match=r"float16 .* and its dense weight .*float32 .* differ"):
        batch.project()


def test_what_the_kernel_refuses():
    assert native.supports(torch.zeros(4, 8), 4)
    assert native.supports(torch.zeros(4, 8).t(), 4)
    assert not native.supports(torch.zeros(4, 8), 65)
    assert not native.supports(torch.zeros(4, 8, dtype=torch.float64), 4)
    assert not native.supports(torch.zeros(4, 8, device="meta"), 4)
    assert not native.supports(torch.zeros(4, 8)[:, ::2], 4)
    assert not native.supports(torch.zeros(4, 1).expand(4, 8), 4)
    weight = torch.zeros(1, 8, 1)
    with pytest.raises(ValueError, match="want contiguous"):
        native.project(torch.zeros(8), torch.zeros(8), n=2, m=4)
    with pytest.raises(ValueError, match=r"want \[1, 8, 1\]"):
        native.project(weight, torch.zeros(1, 4, 1), n=2, m=4)
    with pytest.raises(ValueError, match="m=65"):
        native.project(weight, weight, n=2, m=65)
    with pytest.raises(ValueError, match="n=5"):
        native.project(weight, weight, n=5, m=4)
    with pytest.raises(ValueError, match="another number of elements"):
        native.Batch([native.NativeWeight(weight, weight.clone(), (1, 8, 2), 2, 4)])
    with pytest.raises(ValueError, match="are the same memory"):
        native.Batch([native.NativeWeight(weight, weight, (1, 8, 1), 2, 4)])
    with pytest.raises(ValueError, match="its mask"):
        native.Batch([native.NativeWeight(weight, weight.clone(), (1, 8, 1), 2, 4, weight)])


@pytest.fixture
def fresh(monkeypatch):
    """As in a new process: nothing is loaded yet."""
    kept = (library._library, library.isa, library.lanes)
    monkeypatch.delenv("NMSPARSITY_ISA", raising=False)
    for function in kept:
        function.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    for function in kept:
        function.cache_clear()


def test_without_the_library_there_is_one_warning(fresh):
    fresh.setattr(library, "_find", lambda: None)
    with pytest.warns(RuntimeWarning, match="without its native kernel"):
        assert not native.available()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not native.supports(torch.zeros(4, 8), 4)
    assert (native.isa(), native.isas()) == ("reference", [])
    with pytest.raises(RuntimeError, match="there is no native kernel"):
        native.choose("portable")


def test_the_environment_chooses(fresh):
    fresh.setenv("NMSPARSITY_ISA", "reference")
    assert not native.available()
    for wrong in ("avx", "AVX2"):
        library._library.cache_clear()
        fresh.setenv("NMSPARSITY_ISA", wrong)
        with pytest.raises(ValueError, match=f"NMSPARSITY_ISA='{wrong}': want avx512, avx2"):
            native.available()
    fresh.setenv("NMSPARSITY_ISA", "portable")
    assert native.isa() == "portable"


def test_an_instruction_set_is_here_or_refused():
    here = native.isas()
    assert here[-1] == "portable"
    for name in ("avx512", "avx2", "portable"):
        if name in here:
            native.choose(name)
            assert native.isa() == name
        else:
            with pytest.raises(RuntimeError, match=f"'{name}': this machine does not have it"):
                native.choose(name)
    with pytest.raises(ValueError, match="'sse9': want one of avx512, avx2, portable"):
        native.choose("sse9")


def test_importing_loads_nothing():
    code = "import nmsparsity.native as n; print(n.library._library.cache_info().currsize)"
    environment = {**os.environ, "NMSPARSITY_ISA": "nonsense"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "0"


def _tool(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:{sysconfig.get_path('scripts')}")


_FLAGS = {
    "portable": (16, []),
    "avx2": (32, ["--target=x86_64-linux-gnu", "-mavx2", "-mfma"]),
    "avx512": (
        64,
        [
            *("--target=x86_64-linux-gnu", "-mavx2", "-mfma"),
            *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"),
        ],
    ),
}


@pytest.mark.skipif(not _tool("clang++"), reason="needs Clang")
@pytest.mark.parametrize("isa", [*_FLAGS])
def test_clang_takes_every_instruction_set(isa):
    """GCC compiles what is installed here; on macOS it is Clang."""
    width, flags = _FLAGS[isa]
    defined = (
        "-std=c++17",
        "-Wall",
        "-Wno-psabi",
        f"-DNMS_ISA=kernels_{isa}",
        f"-DNMS_BYTES={width}",
    )
    command = [_tool("clang++"), "-fsyntax-only", *defined, *flags, ROOT / "csrc" / "isa.cpp"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not (_tool("cmake") and _tool("c++")), reason="needs CMake and a compiler")
def test_no_access_outside_a_weight(tmp_path):
    """csrc/tests/sanitize.cpp, under the address and undefined behaviour sanitizers."""
    options = ["-DNMS_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=None"]
    if "avx512" not in native.isas():
        options.append("-DNMS_AVX512=OFF")
    steps = [
        [_tool("cmake"), "-S", ROOT, "-B", tmp_path, *options],
        [_tool("cmake"), "--build", tmp_path, "--target", "sanitize", "--parallel", "2"],
        [tmp_path / "sanitize"],
    ]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "agree with the reference" in done.stdout
