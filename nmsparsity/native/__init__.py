"""The native mask kernel: N:M projection at the speed of memory, on CPUs.

C++ in ``csrc/``, built when the package is installed and loaded at first use. Without it, or where
`supports` says no, `Pattern.mask` gives the same masks by plain torch.
"""

from nmsparsity.native.batch import Batch, NativeWeight
from nmsparsity.native.library import available, choose, isa, isas
from nmsparsity.native.memory import supports
from nmsparsity.native.projection import project

__all__ = [
    "Batch",
    "NativeWeight",
    "available",
    "choose",
    "isa",
    "isas",
    "project",
    "supports",
]
