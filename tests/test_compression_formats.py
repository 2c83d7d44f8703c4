"""A model with convolutions is made for both memory formats, and the faster one is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import nmsparsity as nm
from nmsparsity.compression import compressed, formats
from nmsparsity.kernels.choose import Choice


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, set[bool]]:
    """Which formats of inputs each layer was measured with; the kernel is the reference."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seen: dict[str, set[bool]] = {}

    def fastest(problem: Any, weight: Any, bias: Any, examples: Any, *rest: Any) -> Choice:
        seen.setdefault(problem.name, set()).update(e.channels_last for e in examples)
        return Choice("reference")

    monkeypatch.setattr(compressed, "fastest", fastest)
    return seen


def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv3d(1, 1, 1)
    )
    nm.prune(model.eval(), "2:4", include="2")
    return model, torch.randn(1, 3, 12, 12)


@pytest.mark.parametrize("kept", ["contiguous", "channels_last"])
def test_the_faster_format_is_kept_and_reported(
    shown: dict[str, set[bool]], kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def medians(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        for call in calls.values():
            call()
        return {name: 1.0 if name == kept else 2.0 for name in calls}

    monkeypatch.setattr(formats, "medians", medians)
    model, x = network()
    packed: Any = nm.compress(model, x)
    assert shown == {"2": {False, True}}
    assert_close(packed(x), model(x).detach())
    between = packed.get_submodule("0")(x)
    assert between.is_contiguous() == (kept == "contiguous")
    assert between.is_contiguous(memory_format=formats.FORMATS[kept])
    assert f"activations: {kept} 1 ms (kept), " in str(nm.compressed_report(packed))
    assert model[0].weight.is_contiguous()


def test_without_convolutions_or_measuring_one_model_is_made(shown: dict[str, set[bool]]) -> None:
    model, x = network()
    for options in ({"backend": "reference"}, {"example_inputs": x, "backend": "reference"}):
        assert not nm.compressed_report(nm.compress(model, **options)).formats
    linear = nn.Sequential(nn.Linear(8, 8))
    nm.prune(linear, "2:4", include="*")
    assert not nm.compressed_report(nm.compress(linear, torch.randn(1, 8))).formats
    assert set(shown) == {"0"}
