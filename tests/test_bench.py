"""Benchmarks: engines in turns, what they found, and what is said where one cannot run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import nmsparsity as nm
from nmsparsity.bench import ENGINES, Benchmark, Row, memory, rounds
from nmsparsity.bench.engines import exported, named
from nmsparsity.bench.error import error
from nmsparsity.bench.flat import Flat, call, tensors
from nmsparsity.bench.memory import Footprint, footprint
from nmsparsity.bench.plot import plot_benchmarks
from nmsparsity.bench.rounds import Times, interleaved
from nmsparsity.promises import declared

OTHERS = ["onnxruntime", "openvino"]


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def images() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 16, 4)).eval(), torch.randn(
        2, 8, 6, 6
    )


def engine(name: str) -> Any:
    pytest.importorskip("onnx")
    pytest.importorskip(name)
    return ENGINES[name]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that have passed: a test lets them pass."""
    now = [0.0]
    monkeypatch.setattr(rounds, "perf_counter", lambda: now[0])
    return now


def test_turns_alternate_and_warm_up_is_not_counted(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(rounds, "sleep", lambda seconds: calls.append("-"))

    def lasting(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            calls.append(name)
            clock[0] += seconds

        return run

    ticks: list[str] = []
    # Both last longer than the least length of a turn: they are not repeated.
    times = interleaved({"a": lasting("a", 5e-3), "b": lasting("b", 1.0)}, 3, ticks.append)
    # A pause before every turn: waiting threads of the one before fall asleep. Then a short call
    # goes on until the core is awake, and only its last turn counts.
    assert calls == [*"aaaa", *"bb", *"-aaa-b-aaa-b-aaa-b"]
    assert ticks == list("ababab")
    assert times["a"].turns == pytest.approx([5e-3] * 3)
    with pytest.raises(ValueError, match="rounds 0: want 1 or more"):
        interleaved({"a": int}, 0)


@pytest.mark.parametrize("disturbed", [2, 3, 4])
def test_short_calls_are_repeated_within_their_turn(clock: list[float], disturbed: int) -> None:
    calls: list[int] = []

    def run() -> None:
        calls.append(1)
        clock[0] += 5e-3 if len(calls) == disturbed else 1e-5

    (its,) = interleaved({"a": run}, 2).values()
    assert len(calls) == pytest.approx(4 + 2 * 3 * 400, abs=6)
    assert its.turns == pytest.approx([1e-5] * 2)


def test_quartiles_by_hand() -> None:
    assert Times((7.0,)).low == Times((7.0,)).high == 7.0
    its = Times((4.0, 1.0, 2.0, 3.0, 5.0))
    assert (its.low, its.median, its.high) == (2.0, 3.0, 4.0)


def test_a_footprint_is_what_was_taken() -> None:
    size = 64 * 2**20
    made, grown = footprint(lambda: torch.ones(size // 4), lambda x: x + 1)
    assert made.nbytes == size
    if grown.resident is None or grown.peak is None:
        pytest.skip("this system does not tell")
    assert 0.9 * size < grown.resident < 1.3 * size
    assert 1.8 * size < grown.peak < 2.5 * size


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_STATUS", Path("/nowhere"))
    runs: list[int] = []
    made, grown = footprint(lambda: 3, runs.append)
    assert (made, grown) == (3, Footprint(None, None))
    assert runs == [3, 3]


class Named(nn.Module):
    """Takes its arguments by name, nested, and gives several results."""

    def forward(
        self, pair: tuple[Tensor, Tensor], scale: float, other: Tensor
    ) -> dict[str, Tensor]:
        return {"sum": scale * pair[0] + pair[1], "other": other @ pair[0]}


def named_inputs() -> dict[str, Any]:
    return {"pair": (torch.randn(4, 4), torch.randn(4)), "scale": 2.0, "other": torch.randn(3, 4)}


def test_flat_models_take_and_give_tensors() -> None:
    model, inputs = Named(), named_inputs()
    flat = Flat(model, inputs)
    assert_close(list(flat(*flat.tensors)), tensors(call(model, inputs)))
    doubled = [2 * x for x in flat.tensors]
    assert_close(flat(*doubled)[1], 4 * call(model, inputs)["other"])
    with pytest.raises(ValueError, match="inputs: want one tensor at least"):
        Flat(model, {"scale": 1.0})


@pytest.mark.parametrize("name", OTHERS)
def test_other_engines_compute_the_same(name: str) -> None:
    its = engine(name)
    assert its.missing() is None
    model, x = images()
    assert_close(tensors(its.start(model, x, 1)()), [model(x)], atol=1e-4, rtol=1e-4)
    several = its.start(Named(), named := named_inputs(), 1)()
    assert_close(tensors(several), tensors(call(Named(), named)), atol=1e-4, rtol=1e-4)


def test_exported_sizes_may_change() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    flat = Flat(nn.Linear(4, 2), torch.randn(3, 4))
    built = onnxruntime.InferenceSession(exported(flat, {"input0": {0: "tokens"}}))
    x = torch.randn(7, 4)
    (y,) = built.run(None, {name: x.detach().numpy() for name in named([x])})
    assert_close(torch.from_numpy(y), flat(x)[0].detach())


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(ENGINES["openvino"]), "packages", ("onnx", "not_there"))
    model, x = images()
    found = nm.benchmark(model, x, patterns="2:4", against=["openvino"], rounds=1)
    assert "pip install not_there" in found.missing["openvino"]
    assert "openvino: not run: not installed" in str(found)
    assert [row.name for row in found.rows] == ["torch", "2:4"]


def test_an_engine_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(type(ENGINES["channels_last"]), "start", broken)
    model, x = images()
    found = nm.benchmark(model, x, patterns="2:4", against=["channels_last"], rounds=1)
    assert found.missing == {"channels_last": "RuntimeError: no such operator"}


def test_patterns_and_both_memory_formats() -> None:
    model, x = images()
    before, threads = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_num_threads()
    found = nm.benchmark(
        model, x, patterns=["2:4", "1:4"], against=["channels_last"], threads=1, rounds=2
    )
    ours = ["2:4", "2:4 channels_last", "1:4", "1:4 channels_last"]
    assert [row.name for row in found.rows] == ["torch", "channels_last", *ours]
    assert all(row.error < 1e-5 for row in found.rows)
    assert [row.packed for row in found.rows] == [False, False, *4 * [True]]
    assert found.batch == 2
    assert torch.get_num_threads() == threads
    assert_close(model.state_dict(), before, atol=0, rtol=0)
    assert set(found.layers) == set(ours)
    for word in (*ours, "layers of 1:4:", "ms packed", "times as fast as"):
        assert word in str(found)


def test_a_few_entries_at_a_time() -> None:
    model, x = images()
    found = nm.benchmark(model, x, patterns="2:4", against=[], rounds=1, micro_batch=1)
    assert [row.name for row in found.rows] == ["torch", "2:4", "2:4, 1 at a time"]
    assert found["2:4, 1 at a time"].error < 1e-5
    assert found["2:4, 1 at a time"].packed
    whole = nm.benchmark(model, x, patterns="2:4", against=[], rounds=1, micro_batch=2)
    assert [row.name for row in whole.rows] == ["torch", "2:4"]


def test_errors_are_against_the_same_weights() -> None:
    """Pruned weights give another result than the model's own, which is no error of ours."""
    model, x = images()
    found = nm.benchmark(model, x, patterns="1:8", against=[], rounds=1, backend="reference")
    assert found["1:8"].error < 1e-5
    pruned = nm.prune(images()[0], "1:8")
    assert pruned.ok
    assert error([torch.ones(2)], [torch.tensor([1.0, 2.0])]) == 0.5
    assert error([torch.zeros(2)], [torch.zeros(2)]) == 0.0
    with pytest.raises(ValueError, match=r"outputs of shapes \[\[2\]\], dense torch has \[\[3\]\]"):
        error([torch.ones(2)], [torch.ones(3)])


def test_a_model_that_is_sparse_or_packed_already() -> None:
    model, x = images()
    with pytest.raises(ValueError, match="no weight of this Sequential is N:M"):
        nm.benchmark(model, x, against=[], rounds=1)
    nm.prune(model, {"3": nm.Pattern(2, 4, "kernel")})
    known = len(declared())
    found = nm.benchmark(model, x, against=[], rounds=1, backend="reference")
    assert [row.pattern for row in found.layers["packed"].packed] == ["2:4"]
    packed = nm.compress(model, x, backend="reference")
    again = nm.benchmark(packed, x, against=[], rounds=1)
    assert [row.name for row in again.rows] == ["torch", "packed"]
    assert again["packed"].error < 1e-5
    assert len(declared()) >= known
    with pytest.raises(ValueError, match="the model is packed already"):
        nm.benchmark(packed, x, patterns="2:4", rounds=1)


def test_wrong_arguments() -> None:
    model, x = images()
    with pytest.raises(ValueError, match=r"unknown engine 'onnx'; known: .*did you mean"):
        nm.benchmark(model, x, patterns="2:4", against=["onnx"])
    with pytest.raises(ValueError, match="threads 0: want 1 or more"):
        nm.benchmark(model, x, patterns="2:4", threads=0)


def two() -> Benchmark:
    rows = [
        Row("torch", False, Times((0.004, 0.004)), Footprint(4_000_000, 5_000_000), 0.0),
        Row("onnxruntime", False, Times((0.003,)), Footprint(), 1e-7),
        Row("2:4", True, Times((0.001, 0.002)), Footprint(2_000_000, None), 2e-7),
    ]
    return Benchmark("net", 8, 1, 2, rows, {"openvino": "not installed"})


def test_speedups_by_hand(tmp_path: Path) -> None:
    found = two()
    assert found.best_dense.name == "onnxruntime"
    assert found.speedup("2:4") == pytest.approx(2.0)
    assert found.summary == (
        "2:4 is 2.00 times as fast as onnxruntime, the fastest dense engine here"
    )
    line = next(text for text in str(found).splitlines() if text.startswith("2:4 "))
    assert line.split() == [
        "2:4",
        "1.500",
        "1.250",
        "to",
        "1.750",
        "5,333.3",
        "2.00",
        "2.0",
        "-",
        "2e-07",
    ]
    said = json.loads(found.to_json())
    assert said["rows"][2]["median_ms"] == pytest.approx(1.5)
    assert said["rows"][2]["speedup"] == pytest.approx(2.0)
    assert said["missing"] == {"openvino": "not installed"}
    plot_benchmarks([found, found], tmp_path / "found.png")
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="want one Benchmark at least"):
        plot_benchmarks([], tmp_path / "none.png")
