"""Many weights, each optimizer step a few calls of the native kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from nmsparsity.native.library import WeightStruct, call
from nmsparsity.native.memory import DTYPES, facts, same_memory, supports


@dataclass(frozen=True)
class NativeWeight:
    """A weight in the model and its dense weight, as `Batch` takes them.

    Both fill their memory without gaps and have the same strides, in any order of dimensions;
    ``shape`` says how groups lie in that memory: ``[outer, length, inner]``. A convolution's
    weight in ``channels_last`` is ``[out * height * width, in, 1]``.

    Attributes:
        weight: the parameter, which holds the sparse weight.
        dense: the dense weight kept beside it.
        mask: written by every projection when given: bool, with the same strides.
    """

    weight: Tensor
    dense: Tensor
    shape: tuple[int, int, int]
    n: int
    m: int
    mask: Tensor | None = None


class Batch:
    """Many weights, each operation on all of them by one call, in parallel in torch's own threads.

    Everything is in place; results do not depend on the number of threads. Build it once and use
    it at every step: memory that has moved since (``.to``, ``.data =``) is found again.

    Raises:
        ValueError: when `supports` refuses a weight, or a weight and its dense weight differ in
            shape, dtype or strides; from the methods too, when the tensors have changed.

    >>> weight = torch.tensor([[3., 1., 2., 5.]])
    >>> from nmsparsity.native import available
    >>> if available():
    ...     batch = Batch([NativeWeight(weight, weight.clone(), (1, 4, 1), n=2, m=4)])
    ...     assert batch.project() == ([2], [])
    ...     assert weight.tolist() == [[3., 0., 0., 5.]]
    """

    def __init__(self, weights: Sequence[NativeWeight]) -> None:
        self._weights = list(weights)
        self._array = (WeightStruct * len(self._weights))()
        self._rows = [self._array[i] for i in range(len(self._weights))]
        self._sparse = [entry.weight for entry in self._weights]
        self._dense = [entry.dense for entry in self._weights]
        self._masks = [entry.mask for entry in self._weights if entry.mask is not None]
        self._where: list[int] = []
        self._locate()

    def project(self) -> tuple[list[int], list[int]]:
        """``weight <- mask * dense``, where ``mask`` is the N:M mask of ``|dense|``.

        Returns:
            The number of nonzeros of every weight, and the indices of the weights that have NaN
            or infinite elements (their result is of no use).
        """
        self._locate()
        self._run("nms_project")
        increment_version(self._sparse + self._masks)
        nonzeros = [row.nonzeros for row in self._rows]
        return nonzeros, [i for i, row in enumerate(self._rows) if row.bad]

    def check(self) -> list[int]:
        """The number of nonzeros of every weight, -1 where an element is neither 0 nor dense's.

        ``dense`` is compared bit by bit; -0.0 is a 0. Reads only.
        """
        return self.add_term([0.0] * len(self._rows), [None] * len(self._rows))

    def add_term(self, alphas: Sequence[float], grads: Sequence[Tensor | None]) -> list[int]:
        """``grad += alpha * (dense - weight)``, and what `check` returns, in one pass.

        ``dense - weight`` is ``(1 - mask) * dense``. The gradient is bit for bit what
        ``grad.add_(dense - weight, alpha=alpha)`` gives on a CPU with AVX2: ``alpha`` is rounded
        to the dtype, multiply and add are one fused fp32 operation, the result is rounded once.

        Args:
            alphas: one for every weight; 0 leaves its gradient alone.
            grads: one for every weight, or None. A gradient of another dtype or other strides
                than its weight is updated by torch.
        """
        self._locate()
        written = []
        for row, entry, alpha, grad in zip(self._rows, self._weights, alphas, grads, strict=True):
            row.alpha, row.grad = alpha, None
            if grad is None or alpha == 0.0:
                continue
            if grad.dtype == entry.weight.dtype and same_memory(grad, entry.weight):
                row.grad = grad.data_ptr()
                written.append(grad)
            else:
                grad.add_(entry.dense - entry.weight.detach(), alpha=alpha)
        self._run("nms_add_term")
        increment_version(written)
        return [-1 if row.bad else row.nonzeros for row in self._rows]

    def _run(self, function: str) -> None:
        call(function, self._array, len(self._rows))

    def _locate(self) -> None:
        """Describe the weights again where their memory has moved."""
        where = [tensor.data_ptr() for tensor in (*self._sparse, *self._dense, *self._masks)]
        if where != self._where:
            for row, entry in zip(self._rows, self._weights, strict=True):
                _describe(row, entry)
            self._where = where


def _describe(row: WeightStruct, entry: NativeWeight) -> None:
    weight, dense, mask, shape = entry.weight, entry.dense, entry.mask, entry.shape
    if not supports(weight, entry.m) or not 1 <= entry.n <= entry.m:
        raise ValueError(
            f"weight {facts(weight)}, pattern {entry.n}:{entry.m}: the native kernel cannot take it"
        )
    if dense.data_ptr() == weight.data_ptr() and weight.numel():
        raise ValueError(f"weight {facts(weight)} and its dense weight are the same memory")
    if dense.dtype != weight.dtype or not same_memory(dense, weight):
        raise ValueError(f"weight {facts(weight)} and its dense weight {facts(dense)} differ")
    if mask is not None and (mask.dtype != torch.bool or not same_memory(mask, weight)):
        raise ValueError(f"weight {facts(weight)} and its mask {facts(mask)} differ")
    if len(shape) != 3 or shape[0] * shape[1] * shape[2] != weight.numel():
        raise ValueError(f"weight {facts(weight)}: shape {shape} has another number of elements")
    row.sparse, row.dense = weight.data_ptr(), dense.data_ptr()
    row.mask = None if mask is None else mask.data_ptr()
    row.outer, row.length, row.inner = shape
    row.n, row.m, row.dtype = entry.n, entry.m, DTYPES[weight.dtype]
