"""A large batch, a few inputs at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree


class MicroBatches(nn.Module):
    """Runs a model on a few entries of a batch at a time, and puts the results together.

    On a CPU the activations of one image stay in the caches, those of a batch do not: image by
    image a packed network often takes a large batch in much less time. It is for inference, and for
    models whose entries do not know of each other, as almost all are in eval mode.

    Args:
        model: any module; `nmsparsity.compress` it with example inputs of this size.
        size: entries at a time.

    Every tensor among the arguments is taken apart along its first dimension, in which all must
    agree; whatever else there is is given to every part. Results may be nested, all of tensors that
    have the batch as their first dimension.

    Raises:
        ValueError: for a size below 1; when called, for arguments without a common first dimension
            and for results without one.

    >>> model = MicroBatches(nn.Linear(4, 2), size=3)
    >>> model(torch.ones(8, 4)).shape
    torch.Size([8, 2])
    """

    def __init__(self, model: nn.Module, size: int = 1) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size {size}: want at least 1 entry at a time")
        self.model, self.size = model, size

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        leaves, spec = _pytree.tree_flatten((args, kwargs))
        count = _common([leaf for leaf in leaves if isinstance(leaf, Tensor)])
        if count <= self.size:
            return self.model(*args, **kwargs)
        parts = []
        for begin in range(0, count, self.size):
            part = [x[begin : begin + self.size] if isinstance(x, Tensor) else x for x in leaves]
            its_args, its_kwargs = _pytree.tree_unflatten(part, spec)
            parts.append(self.model(*its_args, **its_kwargs))
            _check(parts[-1], min(self.size, count - begin))
        return _pytree.tree_map(lambda *its: torch.cat(its), *parts)


def _common(tensors: list[Tensor]) -> int:
    """The size of the batch."""
    sizes = {tuple(x.shape[:1]) for x in tensors}
    if len(sizes) != 1 or sizes == {()}:
        shapes = ", ".join(str(tuple(x.shape)) for x in tensors) or "no tensor"
        raise ValueError(f"want tensors with one first dimension, the batch; got {shapes}")
    return int(next(iter(sizes))[0])


def _check(result: Any, count: int) -> None:
    for leaf in _pytree.tree_leaves(result):
        if not isinstance(leaf, Tensor):
            raise ValueError(f"the model gives a {type(leaf).__name__}: want tensors, to join them")
        if tuple(leaf.shape[:1]) != (count,):
            raise ValueError(
                f"the model gives a tensor of shape {tuple(leaf.shape)} for {count} entries: want "
                "the batch as its first dimension, to join them"
            )
