"""The difference between two outputs of a model, be they tensors or detections."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils import _pytree

from nmsparsity.bench.flat import tensors

_DETECTIONS = {"boxes", "labels", "scores"}
_SAME = 0.5  # overlap (IoU) from which two boxes are of one object


def error(given: Any, expected: Any) -> float:
    """The largest difference of two outputs, relative to the largest that is expected.

    Detections, lists of mappings as torchvision's detectors give them, are compared one by one,
    for another order of sums may change their order and number: see `detections_error`. Not a
    number where there is nothing to compare.

    Args:
        given: the outputs, or their tensors side by side.
        expected: the outputs.

    Raises:
        ValueError: when they are not as many tensors of the same shapes.

    >>> import torch
    >>> error([torch.tensor([1.0, 4.4])], torch.tensor([1.0, 4.0]))  # doctest: +ELLIPSIS
    0.1...
    """
    if _are_detections(expected):
        pairs = zip(_as(given, expected), expected, strict=True)
        return _largest([detections_error(ours, theirs) for ours, theirs in pairs])
    ours, theirs = (
        [x.double() for x in tensors(value) if x.is_floating_point()] for value in (given, expected)
    )
    shapes = [[list(x.shape) for x in values] for values in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"outputs of shapes {shapes[0]}, dense torch has {shapes[1]}")
    return _largest([_relative(x, y) for x, y in zip(ours, theirs, strict=True) if x.numel()])


def detections_error(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest difference of two lists of detections of one image.

    Detections of one label whose boxes overlap by half are the same one, the best first. Counted
    are differences of scores, of corners relative to the largest, and of masks on average over the
    image. One that the other list lacks counts with what its score is above the lowest of both
    lists: less than that its score may have been there, too.

    Args:
        given, expected: ``boxes`` ``[count, 4]``, ``scores``, ``labels``, perhaps ``masks``.

    >>> import torch
    >>> one = {"boxes": torch.tensor([[0.0, 0, 10, 10]]), "labels": torch.tensor([1])}
    >>> two = {name: torch.cat([x, x + 50]) for name, x in one.items()}
    >>> one["scores"], two["scores"] = torch.tensor([0.75]), torch.tensor([0.5, 0.25])
    >>> detections_error(one, two)
    0.25
    """
    from torchvision.ops import box_iou

    scores = [given["scores"].double(), expected["scores"].double()]
    if not sum(map(len, scores)):
        return math.nan
    lowest = min(float(its.min()) for its in scores if len(its))
    same = given["labels"][:, None] == expected["labels"]
    overlap = box_iou(given["boxes"].double(), expected["boxes"].double()).where(same, 0)
    alone = [[float(score) - lowest for score in its] for its in scores]
    found = [0.0]
    for _ in range(min(map(len, scores))):
        ours, theirs = divmod(int(overlap.argmax()), overlap.shape[1])
        if overlap[ours, theirs] < _SAME:
            break
        overlap[ours], overlap[:, theirs] = 0, 0
        alone[0][ours] = alone[1][theirs] = 0
        found.append(float((scores[0][ours] - scores[1][theirs]).abs()))
        found.append(_relative(given["boxes"][ours].double(), expected["boxes"][theirs].double()))
        if "masks" in expected:
            found.append(float((given["masks"][ours] - expected["masks"][theirs]).abs().mean()))
    return max(*found, *alone[0], *alone[1])


def _are_detections(outputs: Any) -> bool:
    return (
        isinstance(outputs, list)
        and bool(outputs)
        and all(isinstance(its, Mapping) and its.keys() >= _DETECTIONS for its in outputs)
    )


def _as(given: Any, expected: Any) -> Any:
    """What an engine gave side by side, in the form that is expected."""
    values, form = tensors(given), _pytree.tree_structure(expected)
    if len(values) != form.num_leaves:
        raise ValueError(f"{len(values)} tensors of output, dense torch has {form.num_leaves}")
    return _pytree.tree_unflatten(values, form)


def _largest(found: list[float]) -> float:
    there = [value for value in found if not math.isnan(value)]
    return max(there, default=math.nan)


def _relative(x: Tensor, y: Tensor) -> float:
    scale = float(y.abs().max())
    found = float((x - y).abs().max()) / (scale or 1.0)
    # An output that is not a number is as wrong as can be.
    return math.inf if math.isnan(found) else found
