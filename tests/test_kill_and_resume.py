"""A training killed at any moment and started again ends with the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import nmsparsity as nm
from tests.test_sparsifier import batches, loss_on, mlp

STEPS = 60
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2),
}


def train(kind: str, folder: Path, pause: float = 0.0) -> None:
    """An ordinary loop that knows nothing of sparsity beyond the one call."""
    torch.set_num_threads(1)
    model = mlp()
    optimizer = OPTIMIZERS[kind](model.parameters())
    nm.sparsify(model, optimizer, "2:4", decay=1e-2)
    saved, start = folder / "last.pt", 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    data = batches(STEPS)
    for step in range(start, STEPS):
        x, y = data[step]
        optimizer.zero_grad()
        loss_on(model, x, y).backward()
        optimizer.step()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**state, "step": step + 1}, folder / "next.pt")
        os.replace(folder / "next.pt", saved)
        time.sleep(pause)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_kill_9_and_resume_is_bit_identical(kind: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    train(kind, whole)

    code = f"from tests.test_kill_and_resume import *; train({kind!r}, Path({str(killed)!r}), 0.05)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[1])
    deadline = time.monotonic() + 120
    while not (killed / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = torch.load(killed / "last.pt", weights_only=True)["step"]
    assert 0 < done < STEPS
    train(kind, killed)

    ends = [torch.load(folder / "last.pt", weights_only=True) for folder in (whole, killed)]
    assert_close(ends[1], ends[0], rtol=0, atol=0)
