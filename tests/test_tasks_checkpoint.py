"""Files of weights, ours and others': read, inspected, packed."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

import nmsparsity as nm
from nmsparsity.tasks.checkpoint import Checkpoint
from nmsparsity.tasks.inspection import inspect
from nmsparsity.tasks.packing import pack


def sparse_net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.Flatten(), nn.Linear(32, 16))
    nm.prune(net, {"0": "2:4", "3": "1:4"})
    return net


def lightning_file(path: Path, net: nn.Module, patterns: dict[str, list[str]]) -> Path:
    """What RunFolder and SparsityCallback leave in a checkpoint."""
    content = {
        "state_dict": {f"model.{name}": value for name, value in net.state_dict().items()},
        "callbacks": {"SparsityCallback": {"patterns": patterns, "history": []}},
        "config": "task: {model: x}\n",
    }
    torch.save(content, path)
    return path


def written(kind: str, folder: Path, net: nn.Module) -> Path:
    path = folder / ("file.safetensors" if "safetensors" in kind else "file.pt")
    if kind == "state_dict":
        torch.save(net.state_dict(), path)
    elif kind == "model and epoch":
        torch.save({"model": net.state_dict(), "epoch": 3}, path)
    elif kind == "safetensors":
        save_file(net.state_dict(), path)
    elif kind == "packed safetensors":
        nm.save(net, path)
    return path


KINDS = ("state_dict", "model and epoch", "safetensors", "packed safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_anyones_file_is_read_and_inspected(kind: str, tmp_path: Path) -> None:
    net = sparse_net()
    path = written(kind, tmp_path, net)
    other = sparse_net()
    nn.init.zeros_(other[0].weight)
    Checkpoint.read(path).load_into(other)
    assert torch.equal(other[0].weight, net[0].weight)
    found = inspect(path)
    assert found.ok
    by_name = {layer.name: layer for layer in found.layers}
    assert {name: str(layer.pattern) for name, layer in by_name.items()} == {
        "0.weight": "2:4",
        "3.weight": "1:4",
    }
    assert (by_name["0.weight"].density, by_name["3.weight"].density) == (0.5, 0.25)
    assert "2 of 2 weights are N:M" in str(found)


@pytest.mark.parametrize("kind", KINDS)
def test_packing_is_loss_free(kind: str, tmp_path: Path) -> None:
    net = sparse_net()
    size, dense = pack(written(kind, tmp_path, net), tmp_path / "packed.safetensors")
    assert size == (tmp_path / "packed.safetensors").stat().st_size < 0.7 * dense
    other = sparse_net()
    nn.init.zeros_(other[0].weight)
    nm.load(tmp_path / "packed.safetensors", other)
    for name, value in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_declared_patterns_are_checked(tmp_path: Path) -> None:
    net = sparse_net()
    patterns = {"model.0.weight": ["2:4", "input"], "model.3.weight": ["1:4", "input"]}
    path = lightning_file(tmp_path / "good.ckpt", net, patterns)
    assert inspect(path).ok
    assert Checkpoint.read(path).config == {"task": {"model": "x"}}
    with torch.no_grad():
        net[0].weight[3, :4, 1, 1] = 1.0
    bad = lightning_file(tmp_path / "bad.ckpt", net, patterns)
    found = inspect(bad)
    assert not found.ok
    assert "NOT 2:4" in str(found)
    with pytest.raises(ValueError, match=r"0\.weight .* is not 2:4"):
        pack(bad, tmp_path / "packed.safetensors")
    assert not (tmp_path / "packed.safetensors").exists()


def test_the_configuration_travels_into_the_packed_file(tmp_path: Path) -> None:
    path = lightning_file(tmp_path / "file.ckpt", sparse_net(), {})
    pack(path, tmp_path / "packed.safetensors")
    assert Checkpoint.read(tmp_path / "packed.safetensors").config == {"task": {"model": "x"}}


def test_no_code_in_a_file_is_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": {"weight": torch.ones(2, 2)}, "extra": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"other things than tensors \(io\.open\)") as raised:
        Checkpoint.read(tmp_path / "evil.pt")
    assert "weights_only" not in str(raised.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [torch.zeros(3), {"epoch": 3}, [1, 2], {}])
def test_files_without_weights(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=r"file\.pt"):
        Checkpoint.read(tmp_path / "file.pt")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        Checkpoint.read(tmp_path / "nothing.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.pt: no checkpoint that torch can read"):
        Checkpoint.read(tmp_path / "text.pt")
    (tmp_path / "script.pt").write_text('"""A script."""')
    with pytest.raises(ValueError, match=r"script\.pt: no checkpoint that torch can read"):
        Checkpoint.read(tmp_path / "script.pt")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.safetensors"):
        Checkpoint.read(tmp_path / "text.safetensors")


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", ["state_dict", "ours"])
def test_a_transposed_convolution_is_seen_along_its_input(
    kind: str, groups: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.ConvTranspose2d(32, 16, 3, groups=groups), nn.Conv2d(16, 2, 1))
    other = copy.deepcopy(net)
    nm.prune(net, "2:4")
    if kind == "ours":
        path = lightning_file(tmp_path / "x.ckpt", net, {"model.0.weight": ["2:4", "input"]})
    else:
        path = written(kind, tmp_path, net)
    layer = inspect(path).layers[0]
    assert (layer.pattern, layer.density) == (nm.Pattern(2, 4), 0.5)
    assert layer.note == ("" if kind == "ours" else "seen from its zeros")
    pack(path, tmp_path / "packed")
    nm.load(tmp_path / "packed", other)
    assert torch.equal(other[0].weight, net[0].weight)
    assert nm.verify(other).rows[0].pattern == "2:4"


def test_scattered_zeros_are_no_pattern(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 64) * (torch.rand(64, 64) > 0.4)
    torch.save({"weight": weight}, tmp_path / "x.pt")
    assert inspect(tmp_path / "x.pt").layers[0].pattern is None


def test_weights_of_another_model_are_refused_and_nothing_is_loaded(tmp_path: Path) -> None:
    net = sparse_net()
    del net[3]
    before = copy.deepcopy(net.state_dict())
    torch.save(sparse_net().state_dict(), tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt: .* '3\.weight' is in the file, but not in"):
        Checkpoint.read(tmp_path / "x.pt").load_into(net)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_modules_with_versions_are_loaded(kind: str, tmp_path: Path) -> None:
    net, other = (torchvision.models.mnasnet0_5(num_classes=4) for _ in range(2))
    path = written(kind, tmp_path, net)
    Checkpoint.read(path).load_into(other)
    for name, value in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_a_checkpoint_without_counted_batches_is_loaded(tmp_path: Path) -> None:
    net, other = sparse_net(), sparse_net()
    nn.init.zeros_(other[1].weight)
    state = dict(net.state_dict())
    del state["1.num_batches_tracked"]
    torch.save(state, tmp_path / "x.pt")
    Checkpoint.read(tmp_path / "x.pt").load_into(other)
    assert torch.equal(other[1].weight, net[1].weight)
