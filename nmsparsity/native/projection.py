"""One weight made N:M by the native kernel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from nmsparsity.native.library import WeightStruct, call
from nmsparsity.native.memory import DTYPES, facts, supports


@torch.no_grad()
def project(
    dense: Tensor,
    sparse: Tensor,
    mask: Tensor | None = None,
    *,
    n: int,
    m: int,
    by_magnitude: bool = True,
) -> tuple[int, bool]:
    """Write the N:M part of ``dense`` to ``sparse``, in one pass over the memory.

    Of every ``m`` elements along ``length`` the ``n`` largest stay as they are, ties go to the
    lower index, and the others become +0.0; a short last group keeps ``min(n, size)``.

    Args:
        dense: contiguous ``[outer, length, inner]`` in fp32, fp16 or bf16, see `Layout.fold`.
        sparse: written; may be ``dense`` itself.
        mask: written when given: bool, true where kept.
        by_magnitude: rank by ``|x|``; otherwise by ``x``.

    Returns:
        The number of nonzeros in ``sparse``, and whether all of ``dense`` was finite; where it
        was not, NaN ranks highest and the result is of no use.

    Raises:
        ValueError: when `supports` says no, or shapes and dtypes differ.

    >>> weight = torch.tensor([[3., 1., 2., 5.]]).view(1, 4, 1)
    >>> from nmsparsity.native import available
    >>> if available():
    ...     _ = project(weight, weight, n=2, m=4)
    """
    for tensor in (dense, sparse) if mask is None else (dense, sparse, mask):
        _check_rows(tensor, dense, torch.bool if tensor is mask else dense.dtype)
    if not supports(dense, m) or not 1 <= n <= m:
        raise ValueError(f"weight {facts(dense)}, n={n}, m={m}: the native kernel cannot take it")
    weight = WeightStruct(
        dense=dense.data_ptr(),
        sparse=sparse.data_ptr(),
        mask=None if mask is None else mask.data_ptr(),
        n=n,
        m=m,
        dtype=DTYPES[dense.dtype],
        is_signed=not by_magnitude,
    )
    weight.outer, weight.length, weight.inner = dense.shape
    call("nms_project", weight, 1)
    increment_version([sparse] if mask is None else [sparse, mask])
    return weight.nonzeros, not weight.bad


def _check_rows(tensor: Tensor, dense: Tensor, dtype: torch.dtype) -> None:
    """One of the tensors of `project` against its dense."""
    if tensor.dim() != 3 or not tensor.is_contiguous():
        raise ValueError(f"rows {facts(tensor)}: want contiguous [outer, length, inner]")
    if tensor.shape != dense.shape or tensor.dtype != dtype or tensor.device != dense.device:
        raise ValueError(f"rows {facts(tensor)}: want {list(dense.shape)} {dtype} on CPU")
