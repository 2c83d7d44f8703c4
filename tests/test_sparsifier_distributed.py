"""Two processes on gloo train what one process trains: DDP, FSDP2, and their checkpoints."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.checkpoint import load as dcp_load
from torch.distributed.checkpoint import save as dcp_save
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.placement_types import Shard
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

import nmsparsity as nm
from tests.test_sparsifier import batches, loss_on, mlp

WORLD = 2
INCLUDE = ["0", "2"]
OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2),
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-2),
}

METHODS: dict[str, dict[str, Any]] = {
    "sr_ste": {"decay": 1e-2},
    "step": {"total_steps": 16, "decay": 1e-2},
    "s_ste": {},
    "gradual": {"steps": 8},
}

pytestmark = pytest.mark.filterwarnings("ignore")


def spawn(work, *args) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_start, (port, work, args), nprocs=WORLD)


def _start(rank: int, port: int, work, args) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    try:
        work(rank, *args)
    finally:
        dist.destroy_process_group()


def build(kind: str, optimizer: str, seed: int = 0, method: str = "sr_ste"):
    """Model as it is trained, its optimizer, the sparsifier."""
    model = mlp(seed)
    net: nn.Module = model
    if kind == "ddp":
        net = DistributedDataParallel(model)
    elif kind == "fsdp2":
        mesh = init_device_mesh("cpu", (WORLD,))
        for layer in model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    made = OPTIMIZERS[optimizer](net.parameters())
    options = METHODS[method]
    return net, made, nm.sparsify(net, made, "2:4", method=method, include=INCLUDE, **options)


def train(net, optimizer, data, rank: int | None = None) -> None:
    for x, y in data:
        if rank is not None:
            x, y = x.chunk(WORLD)[rank], y.chunk(WORLD)[rank]
        optimizer.zero_grad()
        loss_on(net, x, y).backward()
        optimizer.step()


def whole(net: nn.Module) -> list[torch.Tensor]:
    return [p.full_tensor() if hasattr(p, "full_tensor") else p.detach() for p in net.parameters()]


def _same_as_one_process(rank: int, kind: str, optimizer: str, method: str = "sr_ste") -> None:
    net, made, sparsifier = build(kind, optimizer, method=method)
    train(net, made, batches(), rank)
    assert sparsifier.report().ok
    dense, dense_made, dense_sparsifier = build("single", optimizer, method=method)
    train(dense, dense_made, batches())
    for ours, theirs in zip(whole(net), whole(dense), strict=True):
        assert_close(ours, theirs, rtol=1e-5, atol=2e-6)
    with sparsifier.dense_weights(), dense_sparsifier.dense_weights():
        for ours, theirs in zip(whole(net), whole(dense), strict=True):
            assert_close(ours, theirs, rtol=1e-5, atol=2e-6)
    assert len(sparsifier.telemetry().rows) == 2


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_train_what_one_does(kind: str, optimizer: str) -> None:
    spawn(_same_as_one_process, kind, optimizer)


def _each_method(rank: int, kind: str) -> None:
    for method in METHODS:
        _same_as_one_process(rank, kind, "adamw", method)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_train_what_one_does_under_every_method(kind: str) -> None:
    spawn(_each_method, kind)


def _resume_from_distributed_checkpoint(rank: int, folder: str, method: str) -> None:
    data = batches()
    net, made, sparsifier = build("fsdp2", "adamw", method=method)
    train(net, made, data[:5], rank)
    model_state, optimizer_state = get_state_dict(net, made)
    dcp_save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder)
    train(net, made, data[5:], rank)

    again, made_again, sparsifier_again = build("fsdp2", "adamw", seed=3, method=method)
    model_state, optimizer_state = get_state_dict(again, made_again)
    dcp_load({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder)
    set_state_dict(
        again, made_again, model_state_dict=model_state, optim_state_dict=optimizer_state
    )
    assert sparsifier_again.steps == 5
    train(again, made_again, data[5:], rank)
    for ours, theirs in zip(whole(again), whole(net), strict=True):
        assert_close(ours, theirs, rtol=0, atol=0)
    with sparsifier.dense_weights(), sparsifier_again.dense_weights():
        for ours, theirs in zip(whole(again), whole(net), strict=True):
            assert_close(ours, theirs, rtol=0, atol=0)


def _resume_each(rank: int, folder: str) -> None:
    for method in METHODS:
        _resume_from_distributed_checkpoint(rank, f"{folder}/{method}", method)


def test_a_distributed_checkpoint_resumes_bit_by_bit(tmp_path: Path) -> None:
    spawn(_resume_each, str(tmp_path))


def _groups_across_shards(rank: int) -> None:
    model = nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 8))
    mesh = init_device_mesh("cpu", (WORLD,))
    fully_shard(model, mesh=mesh, shard_placement_fn=lambda p: Shard(p.dim() - 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"'0\.weight' \[8, 12\]: .*would cut the groups of 2:4"):
        nm.sparsify(model, optimizer, "2:4", include="0")
    # 8 inputs on two processes are whole groups of 4.
    sparsifier = nm.sparsify(model, optimizer, "2:4", include="1")
    assert sparsifier.report().ok


def test_a_group_that_crosses_a_shard_is_refused() -> None:
    spawn(_groups_across_shards)


def _ddp_after_sparsify(rank: int) -> None:
    model = mlp(seed=rank)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    nm.sparsify(model, optimizer, "2:4")
    net = DistributedDataParallel(model)
    x, y = batches(1)[0]
    loss_on(net, x, y).backward()
    if rank == 0:
        optimizer.step()
    else:
        with pytest.raises(RuntimeError, match="call sparsify after DistributedDataParallel"):
            optimizer.step()


def test_different_dense_weights_on_two_processes_are_refused() -> None:
    spawn(_ddp_after_sparsify)


def _uneven_shards(rank: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 1))
    mesh = init_device_mesh("cpu", (WORLD,))
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    sparsifier = nm.sparsify(model, optimizer, {"0": "2:4", "1": "1:3"})
    for _ in range(3):
        model(torch.ones(2, 8)).sum().backward()
        optimizer.step()
    assert sparsifier.report().ok


def test_uneven_and_empty_shards() -> None:
    spawn(_uneven_shards)
