"""Prune a trained model once, in place."""

from __future__ import annotations

import torch
from torch import nn

from nmsparsity import masks
from nmsparsity.pattern import Axis
from nmsparsity.promises import claimed, declare
from nmsparsity.pruning.criterion import criteria
from nmsparsity.report import Report, describe
from nmsparsity.shards import check_memory, check_shards, local_shard
from nmsparsity.targets import Patterns, Remainder, Rules, select


@torch.no_grad()
def prune(
    model: nn.Module,
    pattern: Patterns = "2:4",
    *,
    method: str = "magnitude",
    include: Rules = None,
    exclude: Rules = None,
    remainder: Remainder = "dense",
    axis: Axis | None = None,
) -> Report:
    """Set the least important weights to zero, in place, so that the model is N:M.

    Nothing keeps it N:M afterwards: to train on, use `nmsparsity.sparsify` instead.

    Args:
        model: a trained module.
        pattern, include, exclude, remainder, axis: as for `nmsparsity.sparsify`.
        method: the criterion; ``"magnitude"`` keeps the largest |w| of every group.

    Returns:
        The per-layer report.

    Raises:
        ValueError: when no layer can follow the pattern; when a weight is NaN or infinite, naming
            the layer. Then no weight has been changed.

    >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> prune(model, "1:4").rows[0].density
    0.25
    """
    criterion = criteria[method]()
    selection = select(
        model, pattern, include=include, exclude=exclude, remainder=remainder, axis=axis
    )
    selection.require(pattern)
    kept = claimed()
    for target in selection.targets:
        parameter, site = target.site.parameter, target.site
        check_memory(site.name, parameter)
        if id(parameter) in kept:
            raise ValueError(
                f"layer {site.name!r} {list(site.shape)} is kept sparse by a sparsifier, which "
                "would undo this; call its remove() first"
            )
        check_shards(site.name, parameter, site.layout, target.pattern)
        if not torch.isfinite(local_shard(parameter)).all():
            raise ValueError(f"layer {site.name!r} {list(site.shape)}: it has NaN or infinity")
    for target in selection.targets:
        weight = local_shard(target.site.parameter)
        mask = masks.mask(criterion.score(weight), target.pattern, target.site.layout)
        weight.masked_fill_(~mask, 0.0)
    declare({target.site: target.pattern for target in selection.targets})
    return describe(selection.targets, selection.skipped, model)
