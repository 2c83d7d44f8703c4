"""Kernels: how a packed weight is multiplied, one backend a file; importing this registers them."""

from nmsparsity.kernels.base import KERNELS, Kernel, kernel

# One import line for every backend; the order does not matter, `Kernel.priority` does.
from nmsparsity.kernels.native import NativeKernel
from nmsparsity.kernels.op import apply
from nmsparsity.kernels.problem import Problem
from nmsparsity.kernels.reference import ReferenceKernel
from nmsparsity.kernels.semi_structured import CusparseltKernel, CutlassKernel

__all__ = [
    "KERNELS",
    "CusparseltKernel",
    "CutlassKernel",
    "Kernel",
    "NativeKernel",
    "Problem",
    "ReferenceKernel",
    "apply",
    "kernel",
]
