"""The 2:4 kernels of GPUs, on a CPU: packing, refusals, and products by stand-ins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass
from torch.testing import assert_close

import nmsparsity as nm
from nmsparsity.kernels import KERNELS, Problem
from nmsparsity.kernels.choose import choose
from nmsparsity.kernels.epilogue import finish
from nmsparsity.kernels.reference import multiply
from nmsparsity.kernels.semi_structured import CusparseltKernel, CutlassKernel, SemiStructured
from nmsparsity.packed import PackedWeight
from nmsparsity.pattern import Pattern

VALID = ("2:4", "1:4", "2:8", "1:8", "1:16", "2:16", "2:64", "1:12")
LOW = (torch.float16, torch.bfloat16)
PROBLEM = Problem("linear", (64, 128), Pattern(2, 4), torch.float16, device="cuda:0", name="fc")
CONV = Problem("conv2d", (64, 64, 1, 1), Pattern(2, 4), torch.float16, device="cuda:0", name="c")


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], cusparselt: bool) -> None:
    """Say that there is one."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: cusparselt)
    monkeypatch.setattr(torch.version, "hip", None)


def weight(problem: Problem) -> Tensor:
    torch.manual_seed(0)
    dense = torch.randn(problem.shape).to(problem.dtype)
    return dense * problem.pattern.mask(dense.float().abs())


def packed(problem: Problem) -> PackedWeight:
    return PackedWeight.pack(weight(problem), problem.pattern)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("text", VALID)
def test_packed_and_unpacked_bit_by_bit(text: str, dtype: torch.dtype) -> None:
    problem = replace(PROBLEM, pattern=Pattern.parse(text), dtype=dtype, shape=(64, 192))
    kernel, its = CutlassKernel(), packed(problem)
    assert kernel.unfit(problem) is None
    tiles = kernel.tile(problem, its)
    assert [tuple(tile.shape) for tile in tiles] == [(64, 96), (64, 12)]
    assert torch.equal(kernel.untile(problem, tiles).unpack(), its.unpack())
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(*tiles), weight(problem))


@pytest.mark.parametrize("text", ["1:4", "1:2", "1:16"])
@pytest.mark.usefixtures("tf32")
def test_fp32_is_one_of_two(text: str) -> None:
    problem = replace(PROBLEM, pattern=Pattern.parse(text), dtype=torch.float32)
    kernel, its = CutlassKernel(), packed(problem)
    assert kernel.unfit(problem) is None
    tiles = kernel.tile(problem, its)
    assert torch.equal(kernel.untile(problem, tiles).unpack(), its.unpack())


def test_a_convolution_is_packed_too() -> None:
    kernel, its = CutlassKernel(), packed(CONV)
    assert kernel.unfit(CONV) is None
    assert torch.equal(kernel.untile(CONV, kernel.tile(CONV, its)).unpack(), its.unpack())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pattern": Pattern(4, 8)}, "4:8 is not 2:4: GPUs multiply at most 2 of every 4"),
        ({"pattern": Pattern(3, 4)}, "3:4 is not 2:4"),
        ({"pattern": Pattern(2, 6)}, "2:6 is not 2:4"),
        ({"pattern": Pattern(1, 5)}, "1:5 is not 2:4"),
        ({"pattern": Pattern(2, 4, "kernel")}, "groups along the inputs"),
        ({"shape": (48, 128)}, "a multiple of 32 outputs and of 64 inputs, this one has 48 and"),
        ({"shape": (64, 96)}, "a multiple of 32 outputs and of 64 inputs, this one has 64 and 96"),
        ({"dtype": torch.float64}, "computes in torch.float16, torch.bfloat16, torch.float32"),
        ({"dtype": torch.float32}, "TF32, which keeps 10 bits: allow that with"),
    ],
)
def test_what_cutlass_refuses(change: dict[str, object], said: str) -> None:
    refusal = CutlassKernel().unfit(replace(PROBLEM, **change))  # type: ignore[arg-type]
    assert refusal is not None
    assert said in refusal


@pytest.mark.usefixtures("tf32")
def test_fp32_refuses_two_of_four() -> None:
    problem = replace(PROBLEM, dtype=torch.float32)
    assert CutlassKernel().unfit(problem) == (
        "2:4 is not 1:2: GPUs multiply at most 2 of every 4 (in fp32 1 of every 2)"
    )


def test_what_cusparselt_takes() -> None:
    kernel = CusparseltKernel()
    assert kernel.unfit(replace(PROBLEM, shape=(48, 80))) is None
    assert "multiple of 16 outputs" in str(kernel.unfit(replace(PROBLEM, shape=(40, 80))))
    assert "the weight is torch.float32" in str(kernel.unfit(replace(PROBLEM, dtype=torch.float32)))


@pytest.mark.parametrize(
    "change",
    [
        {"shape": (64, 64, 3, 3)},
        {"stride": (2, 2)},
        {"padding": (1, 0)},
        {"shape": (64, 64, 1, 1), "groups": 2},
    ],
)
def test_other_convolutions_are_refused(change: dict[str, object]) -> None:
    said = CutlassKernel().unfit(replace(CONV, **change))  # type: ignore[arg-type]
    assert said == "it runs linear layers and 1x1 convolutions without stride, padding and groups"


@pytest.mark.parametrize(
    ("kernel", "capability", "library", "said"),
    [
        (CutlassKernel(), (8, 0), False, None),
        (CutlassKernel(), (8, 9), False, None),
        (CutlassKernel(), (9, 0), True, "want compute capability 8.x, cuda:0 has 9.0"),
        (CutlassKernel(), (7, 5), True, "want compute capability 8.x, cuda:0 has 7.5"),
        (CusparseltKernel(), (9, 0), True, None),
        (CusparseltKernel(), (9, 0), False, "this torch was built without cuSPARSELt"),
        (CusparseltKernel(), (7, 5), True, "want compute capability 8.0, cuda:0 has 7.5"),
    ],
)
def test_what_a_gpu_lacks(
    kernel: SemiStructured,
    capability: tuple[int, int],
    library: bool,
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu(monkeypatch, capability, library)
    refusal = kernel.refuses(PROBLEM)
    assert refusal == said if said is None else said in str(refusal)


def test_amd_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, (8, 0), True)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    for name in ("cutlass", "cusparselt"):
        assert "AMD GPUs" in str(KERNELS[name].refuses(PROBLEM))


def test_each_kernel_keeps_to_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, (8, 6), True)
    assert choose(PROBLEM).kernel == "cusparselt"
    assert choose(PROBLEM, "native").reason == (
        "kernel 'native' refuses it: it runs on the CPU, the weight is on cuda:0"
    )
    refused = choose(replace(PROBLEM, pattern=Pattern(4, 8)))
    assert refused.kernel is None
    for name in ("native", "cutlass", "cusparselt", "reference"):
        assert f"kernel {name!r} refuses it: " in refused.reason
    here = choose(replace(PROBLEM, device="cpu"), "cutlass").reason
    assert here == "kernel 'cutlass' refuses it: it runs on NVIDIA GPUs, the weight is on cpu"


def test_on_a_cpu_nothing_changes() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    nm.prune(model, "2:4")
    assert [row.kernel for row in nm.compressed_report(nm.compress(model)).packed] == ["native"]
    rows = nm.compressed_report(nm.compress(model, backend="cutlass")).rows
    assert "it runs on NVIDIA GPUs, the weight is on cpu" in rows[0].reason


def by_dense(positions: bool) -> SimpleNamespace:
    """Stand-ins for torch's operators: they unpack, and multiply as the operators promise."""

    def mm(values: Tensor, meta: Tensor, x: Tensor) -> Tensor:
        return sparse_semi_structured_to_dense_cutlass(values, meta) @ x

    def addmm(bias: Tensor, values: Tensor, meta: Tensor, x: Tensor) -> Tensor:
        return mm(values, meta, x) + bias.unsqueeze(1)

    def cslt_mm(tile: Tensor, x: Tensor, bias: Tensor | None = None, **options: object) -> Tensor:
        result = tile.reshape(-1, x.shape[0]) @ x
        result = result if bias is None else result + bias.unsqueeze(1)
        return result.t() if options.get("transpose_result") else result

    return SimpleNamespace(mm=mm, addmm=addmm, cslt_mm=cslt_mm)


@pytest.fixture
def operators(monkeypatch: pytest.MonkeyPatch) -> None:
    ops = by_dense(True)
    monkeypatch.setattr(torch, "_sparse_semi_structured_mm", ops.mm)
    monkeypatch.setattr(torch, "_sparse_semi_structured_addmm", ops.addmm)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", ops.cslt_mm)
    monkeypatch.setattr(torch, "_cslt_compress", lambda dense: dense.flatten())


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize("name", ["cutlass", "cusparselt"])
@pytest.mark.parametrize("biased", [False, True])
def test_products_are_those_of_the_reference(name: str, biased: bool) -> None:
    kernel = KERNELS[name]
    assert isinstance(kernel, SemiStructured)
    cases = [
        (replace(PROBLEM, device="cpu"), torch.randn(3, 5, 128)),
        (replace(PROBLEM, device="cpu"), torch.randn(128)),
        (replace(PROBLEM, device="cpu"), torch.randn(0, 128)),
        (replace(CONV, device="cpu"), torch.randn(2, 64, 3, 5)),
        (
            replace(CONV, device="cpu"),
            torch.randn(2, 64, 3, 5).contiguous(memory_format=torch.channels_last),
        ),
    ]
    for problem, given in cases:
        x = given.to(problem.dtype)
        bias = torch.randn(64).to(problem.dtype) if biased else None
        tiles = kernel.tile(problem, packed(problem))
        result = kernel.product(problem, tiles, x, bias)
        expected = multiply(problem, weight(problem), x, bias)
        assert_close(result, expected, atol=2e-2, rtol=2e-2)
        assert result.is_contiguous() == expected.is_contiguous()
        assert_close(finish(result, "relu"), finish(expected, "relu"), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("name", ["cutlass", "cusparselt"])
def test_nothing_runs_on_a_cpu_by_mistake(name: str) -> None:
    kernel, problem = KERNELS[name], replace(PROBLEM, device="cpu")
    tiles = CutlassKernel().tile(problem, packed(problem))
    with pytest.raises(ValueError, match=rf"'fc': kernel {name!r} runs on a GPU, the input is on"):
        kernel.run(problem, tiles, torch.ones(1, 128).half())


def test_an_opaque_tile_stays_on_its_gpu() -> None:
    with pytest.raises(ValueError, match=r"'fc': only the GPU that packed it can unpack"):
        CusparseltKernel().untile(PROBLEM, (torch.ones(4),))
