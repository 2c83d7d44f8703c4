"""Packing: a checkpoint written as one packed file."""

from __future__ import annotations

from pathlib import Path

import yaml

from nmsparsity.packed import write
from nmsparsity.tasks.checkpoint import ATTACHMENT, Checkpoint
from nmsparsity.tasks.inspection import identity, pack_weight


def pack(source: str | Path, target: str | Path) -> tuple[int, int]:
    """Write the weights of a checkpoint as a packed file, loss-free; nothing is pruned.

    Weights that a training kept N:M are packed in that pattern, which the file promises; others in
    the one their zeros show, if it makes them smaller; the rest is stored as it is. Optimizer
    state is left out. The configuration of the training and its attached texts travel along, so
    that ``nmsparsity evaluate`` needs the file alone.

    Returns:
        The bytes of the file, and of the same tensors dense, tied ones once.

    Raises:
        FileNotFoundError, ValueError: as `Checkpoint.read`, and where a weight does not follow the
            pattern that the checkpoint declares.
    """
    checkpoint = Checkpoint.read(source)
    found = {name: pack_weight(checkpoint, name, t) for name, t in checkpoint.tensors.items()}
    packed = {name: weight for name, weight in found.items() if weight is not None}
    plain = {name: t for name, t in checkpoint.tensors.items() if name not in packed}
    promises = {n: its for n, its in checkpoint.patterns.items() if n in checkpoint.tensors}
    about = {f"{ATTACHMENT}{name}": text for name, text in checkpoint.attachments.items()}
    if checkpoint.config is not None:
        about["config"] = yaml.safe_dump(checkpoint.config, sort_keys=False)
    size = write(target, packed, plain, about, promises)
    once = {identity(tensor): tensor.nbytes for tensor in checkpoint.tensors.values()}
    return size, sum(once.values())
