"""One weight made N:M by the native kernel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from nmsparsity.native.library import WeightStruct, call
from nmsparsity.native.memory import DTYPES, facts, supports


@torch.no_grad()
def project(
    source: Tensor,
    sparse: Tensor,
    dense: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    n: int,
    m: int,
    by_magnitude: bool = True,
) -> tuple[int, bool]:
    """Write the N:M part of ``source`` to ``sparse``, in one pass over the memory.

    Of every ``m`` elements along ``length`` the ``n`` largest stay as they are, ties go to the
    lower index, and the others become +0.0; a short last group keeps ``min(n, size)``.

    Args:
        source: contiguous ``[outer, length, inner]`` in fp32, fp16 or bf16, see `Layout.fold`.
        sparse: written; may be ``source`` itself.
        dense: written when given: a copy of ``source``.
        mask: written when given: bool, true where kept.
        by_magnitude: rank by ``|x|``; otherwise by ``x``.

    Returns:
        The number of nonzeros in ``sparse``, and whether all of ``source`` was finite; where it
        was not, NaN ranks highest and the result is of no use.

    Raises:
        ValueError: when `supports` says no, or shapes and dtypes differ.

    >>> weight = torch.tensor([[3., 1., 2., 5.]]).view(1, 4, 1)
    >>> from nmsparsity.native import available
    >>> if available():
    ...     _ = project(weight, weight, n=2, m=4)
    """
    others = [tensor for tensor in (sparse, dense) if tensor is not None]
    for tensor in (source, *others, *([] if mask is None else [mask])):
        _check_rows(tensor, source, torch.bool if tensor is mask else source.dtype)
    if not supports(source, m) or not 1 <= n <= m:
        raise ValueError(f"weight {facts(source)}, n={n}, m={m}: the native kernel cannot take it")
    weight = WeightStruct(
        source=source.data_ptr(),
        sparse=sparse.data_ptr(),
        dense=None if dense is None else dense.data_ptr(),
        mask=None if mask is None else mask.data_ptr(),
        n=n,
        m=m,
        dtype=DTYPES[source.dtype],
        is_signed=not by_magnitude,
    )
    weight.outer, weight.length, weight.inner = source.shape
    call("nms_project", weight, 1)
    increment_version(others if mask is None else [*others, mask])
    return weight.nonzeros, not weight.bad


def _check_rows(tensor: Tensor, source: Tensor, dtype: torch.dtype) -> None:
    """One of the tensors of `project` against its source."""
    if tensor.dim() != 3 or not tensor.is_contiguous():
        raise ValueError(f"rows {facts(tensor)}: want contiguous [outer, length, inner]")
    if tensor.shape != source.shape or tensor.dtype != dtype or tensor.device != source.device:
        raise ValueError(f"rows {facts(tensor)}: want {list(source.shape)} {dtype} on CPU")
