"""Kind: what the command line has to know about one kind of task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch import LightningDataModule

from nmsparsity.tasks.task import Task


@dataclass(frozen=True)
class Kind:
    """One kind of task: its classes, and what is said about its numbers.

    Attributes:
        task: the network, its loss and metrics; its arguments are the fields ``task.*``.
        data: what it learns from; its arguments, ``seed`` among them, are the fields ``data.*``.
        links: properties of the data that are arguments of the task.
        monitor: the logged metric that makes an epoch the best one,
        mode: by its largest or its smallest value.
        train_help, evaluate_help: what the two commands do, with examples.
        trained: the sentence about a training's result.
        evaluated: the sentence about what an evaluation counted.
    """

    task: type[Task]
    data: type[LightningDataModule]
    links: tuple[str, ...]
    monitor: str
    mode: Literal["max", "min"]
    train_help: str
    evaluate_help: str
    trained: Callable[[Mapping[str, Any]], str]
    evaluated: Callable[[Mapping[str, Any]], str]


def not_validated(result: Mapping[str, Any]) -> str:
    """What to say about a training that was never scored.

    >>> not_validated({"epochs": 3})
    '3 epochs, not validated (trainer.check_val_every_n_epoch, limit_val_batches)'
    """
    said = "not validated (trainer.check_val_every_n_epoch, limit_val_batches)"
    return f"{result['epochs']} epochs, {said}"
