"""Training methods, one a file; importing this package registers them."""

from nmsparsity.methods.base import Method, Step, Weight, build, method, methods
from nmsparsity.methods.dense import Dense
from nmsparsity.methods.fixed import Fixed
from nmsparsity.methods.sr_ste import SRSTE
from nmsparsity.methods.ste import STE

__all__ = [
    "SRSTE",
    "STE",
    "Dense",
    "Fixed",
    "Method",
    "Step",
    "Weight",
    "build",
    "method",
    "methods",
]
