"""Evaluation of a trained network: what ``nmsparsity evaluate`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from nmsparsity.tasks.arguments import attach, evaluate_parser
from nmsparsity.tasks.checkpoint import Checkpoint
from nmsparsity.tasks.kinds import DEFAULT, kind, named_in


def evaluate(arguments: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Count the answers of the network in a file; the metrics, and a sentence about them.

    Args:
        arguments: as on the command line, the file first.

    Raises:
        ValueError: if the file does not say which model and data it was trained with.
    """
    if not arguments or arguments[0].startswith("-"):
        # No file: the parser explains itself.
        evaluate_parser({}, named_in(arguments)).parse_args(list(arguments))
    checkpoint = Checkpoint.read(arguments[0])
    known = {part: (checkpoint.config or {}).get(part) for part in ("seed", "task", "data")}
    if None in known.values():
        raise ValueError(
            f"{checkpoint.path}: not of this project's training, so its model and data are unknown"
        )
    name = (checkpoint.config or {}).get("kind", DEFAULT)
    parser = evaluate_parser(known, name)
    config = parser.parse_args(list(arguments))
    attach(config, checkpoint.attachments, kind(name))
    built = parser.instantiate(config)
    checkpoint.load_into(built.task.model)
    built.task.folder = Path(arguments[0]) if Path(arguments[0]).is_dir() else None
    trainer = Trainer(**vars(built.trainer))
    trainer.validate(built.task, datamodule=built.data, verbose=False)
    counted: dict[str, Any] = built.task.counted
    return counted, kind(name).evaluated(counted)
