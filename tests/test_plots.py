"""Pictures of telemetry."""

from pathlib import Path

import pytest
import torch
from torch import nn

import nmsparsity as nm
from nmsparsity.plots import plot_telemetry


def test_a_picture_of_a_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    sparsifier = nm.sparsify(model, optimizer, "2:4")
    history = []
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 16)).square().sum().backward()
        optimizer.step()
        history.append(sparsifier.telemetry())
    assert [seen.step for seen in history] == [1, 2, 3]
    plot_telemetry(history, tmp_path / "sad.png")
    assert (tmp_path / "sad.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="want one Telemetry at least"):
        plot_telemetry([], tmp_path / "sad.png")
