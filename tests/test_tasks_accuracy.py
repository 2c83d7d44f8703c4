"""Accuracy counts images, not batches."""

import pytest
import torch
from torch.nn import functional

from nmsparsity.tasks.accuracy import Accuracy


def test_unequal_batches_weigh_by_image() -> None:
    scores = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 10
    accuracy = Accuracy()
    for start, stop in ((0, 32), (32, 48), (48, 50)):
        accuracy.update(scores[start:stop], labels[start:stop])
    result = accuracy.compute()
    order = scores.argsort(1, descending=True)
    assert result["top1"] == 100 * sum(order[i, 0] == labels[i] for i in range(50)).item() / 50
    assert result["top5"] == 100 * sum(labels[i] in order[i, :5] for i in range(50)) / 50
    assert result["loss"] == pytest.approx(functional.cross_entropy(scores, labels).item())
    assert result["images"] == 50


def test_counts_of_processes_are_added() -> None:
    accuracy = Accuracy()
    accuracy.update(torch.eye(4), torch.tensor([0, 1, 2, 0]))
    other = {"counts": torch.tensor([1, 2, 2]), "loss": torch.tensor(0.5)}
    result = accuracy.compute(lambda t: t + other["counts" if t.dim() else "loss"])
    assert (result["top1"], result["images"]) == (100 * 4 / 6, 6)


def test_fewer_than_five_classes() -> None:
    accuracy = Accuracy()
    accuracy.update(torch.eye(3), torch.tensor([1, 2, 0]))
    assert (accuracy.compute()["top1"], accuracy.compute()["top5"]) == (0.0, 100.0)


def test_nothing_counted_is_an_error() -> None:
    accuracy = Accuracy()
    accuracy.update(torch.eye(3), torch.tensor([1, 2, 0]))
    accuracy.reset()
    with pytest.raises(ValueError, match="no images"):
        accuracy.compute()
