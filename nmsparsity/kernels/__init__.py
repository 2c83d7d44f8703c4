"""Kernels: how a packed weight is multiplied, one backend a file; importing this registers them."""

from nmsparsity.kernels.base import KERNELS, Kernel, kernel
from nmsparsity.kernels.problem import Problem

# One import line for every backend; the order does not matter, `Kernel.priority` does.
from nmsparsity.kernels.reference import ReferenceKernel

__all__ = ["KERNELS", "Kernel", "Problem", "ReferenceKernel", "kernel"]
