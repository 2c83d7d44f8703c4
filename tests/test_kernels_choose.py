"""Which kernel is chosen: by priority, by name, by what was measured; and what is remembered."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import nmsparsity as nm
from nmsparsity.kernels import KERNELS, Problem, ReferenceKernel, choices, timing
from nmsparsity.kernels import choose as choosing
from nmsparsity.kernels.choices import Choices, default_path
from nmsparsity.kernels.choose import Choice, Example, by_priority, choose, fastest
from nmsparsity.kernels.timing import Others
from nmsparsity.layers import PackedLayer
from nmsparsity.packed.weight import PackedWeight
from nmsparsity.pattern import Pattern
from nmsparsity.promises import declared

PROBLEM = Problem("linear", (8, 8), Pattern(2, 4), torch.float32, name="fc")


class Quick(ReferenceKernel):
    """A kernel that wants no convolutions."""

    name, priority = "quick", 10

    def refuses(self, problem: Problem) -> str | None:
        return None if problem.kind == "linear" else "it runs linear layers only"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The reference and the quick kernel, and an empty cache folder."""
    known = {"reference": KERNELS["reference"], "quick": Quick()}
    monkeypatch.setattr(KERNELS, "_things", known)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """What the next measurements say, first to last; each call is made once."""
    answers: list[dict[str, float]] = []

    def medians(calls: Mapping[str, Callable[[], object]], between: Any) -> dict[str, float]:
        between()
        results = {name: call() for name, call in calls.items()}
        for result in results.values():
            assert_close(result, results["dense"])
        answer = answers.pop(0)
        return {name: answer[name] for name in calls}

    monkeypatch.setattr(choosing, "medians", medians)
    return answers


def weight(problem: Problem = PROBLEM) -> PackedWeight:
    dense = torch.randn(problem.shape)
    return PackedWeight.pack(dense * problem.pattern.mask(dense.abs()), problem.pattern)


def test_by_priority_and_by_name() -> None:
    conv = Problem("conv2d", (8, 8, 1, 1), Pattern(2, 4), torch.float32)
    assert [kernel.name for kernel in by_priority()] == ["quick", "reference"]
    assert choose(PROBLEM) == Choice("quick")
    assert choose(conv) == Choice("reference")
    assert choose(PROBLEM, "reference") == Choice("reference")
    reason = "kernel 'quick' refuses it: it runs linear layers only"
    assert choose(conv, "quick") == Choice(None, reason=reason)


def ask(examples: list[Example], store: Choices | None = None) -> Choice:
    return fastest(PROBLEM, weight(), torch.ones(8), examples, store or Choices())


def test_the_fastest_wins(measured: list[dict[str, float]]) -> None:
    measured += [{"dense": 3.0, "quick": 2.0, "reference": 1.0}]
    assert ask([Example((2, 8), activation="gelu", residual=True)]) == Choice("reference", 3.0, 1.0)


def test_a_gain_within_the_noise_is_none(measured: list[dict[str, float]]) -> None:
    measured += [{"dense": 1.0, "quick": 0.96, "reference": 7.0}]
    assert ask([Example((2, 8))]).kernel is None


def test_others_take_the_caches_of_large_models_only() -> None:
    megabyte = 1 << 20
    sizes = [megabyte - 1, megabyte, 5 * megabyte, 500 * megabyte]
    assert [Others(size).nbytes // megabyte for size in sizes] == [0, 1, 4, 64]
    order: list[str] = []
    medians = timing.medians({"a": lambda: order.append("a")}, lambda: order.append("others"))
    assert list(medians) == ["a"]
    assert order[:5] == ["a", "others", "a", "others", "a"]


def test_another_size_of_the_model_is_another_question(measured: list[dict[str, float]]) -> None:
    measured += [{"dense": 1.0, "quick": 2.0, "reference": 7.0}] * 2
    store = Choices()
    for nbytes in (0, 1 << 21, 3 << 20):
        fastest(PROBLEM, weight(), torch.ones(8), [Example((2, 8))], store, Others(nbytes))
    assert not measured


def test_dense_wins(measured: list[dict[str, float]]) -> None:
    measured += [{"dense": 0.8123, "quick": 0.9512, "reference": 7.0}]
    reason = "dense 0.812 ms, packed 0.951 ms: stays dense"
    assert ask([Example((2, 8))]) == Choice(None, 0.8123, 0.9512, reason)


def test_all_calls_of_a_run_count(measured: list[dict[str, float]]) -> None:
    measured += [
        {"dense": 1.0, "quick": 2.0, "reference": 9.0},
        {"dense": 5.0, "quick": 1.0, "reference": 9.0},
    ]
    both = [Example((2, 8), calls=3), Example((4, 8), activation="relu")]
    assert ask(both) == Choice("quick", 8.0, 7.0)


def test_what_was_measured_is_remembered(measured: list[dict[str, float]]) -> None:
    measured += [{"dense": 3.0, "quick": 2.0, "reference": 4.0}]
    store = Choices()
    first = ask([Example((2, 8))], store)
    store.save()
    assert ask([Example((2, 8))]) == first
    with pytest.raises(IndexError):
        ask([Example((3, 8))])


def test_another_machine_or_thread_count_measures_anew(
    measured: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Choices()
    store.put(["fc"], {"dense": 1.0, "quick": 2.0})
    store.save()
    assert Choices().get(["fc"]) is not None
    for module, name in ((choices, "_cpu"), (torch, "get_num_threads"), (choices.native, "isa")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda: "other")
            assert Choices().get(["fc"]) is None


def test_two_writers_keep_each_others_answers() -> None:
    one, other = Choices(), Choices()
    one.put(["a"], {"dense": 1.0, "quick": 2.0})
    other.put(["b"], {"dense": 3.0, "quick": 4.0})
    one.save()
    other.save()
    assert Choices().get(["a"]) == {"dense": 1.0, "quick": 2.0}
    assert Choices().get(["b"]) == {"dense": 3.0, "quick": 4.0}
    assert [path.name for path in default_path().parent.iterdir()] == ["choices.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"a": {"quick": 1.0}}', "\udcff"])
def test_a_damaged_file_is_ignored_with_a_warning_and_replaced(text: str) -> None:
    path = default_path()
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.warns(RuntimeWarning, match=r"choices\.json: damaged, ignored"):
        store = Choices()
    assert store.get(["fc"]) is None
    store.put(["fc"], {"dense": 1.0, "quick": 2.0})
    with pytest.warns(RuntimeWarning, match="damaged"):
        store.save()
    assert len(json.loads(path.read_text())) == 1


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Choices(tmp_path / "file" / "choices.json")
    store.put(["fc"], {"dense": 1.0, "quick": 2.0})
    with pytest.warns(RuntimeWarning, match="could not be kept"):
        store.save()


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_path() == tmp_path / "nmsparsity" / "choices.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert default_path() == tmp_path / "home" / ".cache" / "nmsparsity" / "choices.json"


def test_hopeless_calls_are_made_twice_others_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    made: list[str] = []

    def call(name: str, seconds: float) -> Callable[[], None]:
        def do() -> None:
            made.append(name)
            now[0] += seconds

        return do

    monkeypatch.setattr(timing, "perf_counter", lambda: now[0])
    calls = {"a": call("a", 0.25), "b": call("b", 0.5), "slow": call("slow", 4.0)}
    assert timing.medians(calls) == {"a": 250.0, "b": 500.0, "slow": 4000.0}
    assert made == ["a", "b", "slow"] * 2 + ["a", "b"] * 4


def pruned() -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Flatten(), nn.Linear(8, 12)
    )
    nm.prune(model.eval(), "2:4", include="*")
    return model, torch.randn(4, 8)


def test_compress_packs_where_packed_is_faster(measured: list[dict[str, float]]) -> None:
    measured += [
        {"dense": 3.0, "quick": 2.0, "reference": 9.0},
        {"dense": 1.0, "quick": 2.0, "reference": 9.0},
        {"dense": 2.0, "quick": 2.0, "reference": 1.0},
    ]
    model, x = pruned()
    packed: Any = nm.compress(model, x)
    first, second, third = nm.compressed_report(packed).rows
    assert (first.kernel, first.fused, first.ms_dense, first.ms_packed) == (
        "quick",
        ("relu",),
        3.0,
        2.0,
    )
    assert (second.kernel, second.reason) == (None, "dense 1 ms, packed 2 ms: stays dense")
    assert second.nbytes == second.dense_nbytes
    assert third.kernel == "reference"
    assert type(packed.get_submodule("2")) is nn.Linear
    assert nm.Pattern(2, 4) == declared()[id(packed.get_submodule("2").weight)]
    assert_close(packed(x), model(x))
    nm.compress(model, x)  # measures nothing: the answers are all taken


def test_compress_without_inputs_or_by_name_measures_nothing(
    measured: list[dict[str, float]],
) -> None:
    model, x = pruned()
    for options in ({}, {"example_inputs": x, "backend": "reference"}):
        packed = nm.compress(model, **options)
        assert sum(isinstance(module, PackedLayer) for module in packed.modules()) == 3
    assert {row.kernel for row in nm.compressed_report(nm.compress(model)).rows} == {"quick"}
    assert not default_path().exists()


def test_a_kernel_that_refuses_leaves_the_layer_dense() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 8))
    nm.prune(model, "2:4", include="*")
    rows = nm.compressed_report(nm.compress(model, backend="quick")).rows
    assert [row.kernel for row in rows] == [None, "quick"]
    assert rows[0].reason == "kernel 'quick' refuses it: it runs linear layers only"
