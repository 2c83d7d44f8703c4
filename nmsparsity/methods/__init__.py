"""Training methods, one a file; importing this package registers them."""

from nmsparsity.methods.base import Method, Stage, Step, Weight, build, method, methods
from nmsparsity.methods.course import Course
from nmsparsity.methods.dense import Dense
from nmsparsity.methods.fixed import Fixed
from nmsparsity.methods.gradual import Gradual
from nmsparsity.methods.s_ste import SSTE
from nmsparsity.methods.sr_ste import SRSTE
from nmsparsity.methods.ste import STE
from nmsparsity.methods.step import STEP

__all__ = [
    "SRSTE",
    "SSTE",
    "STE",
    "STEP",
    "Course",
    "Dense",
    "Fixed",
    "Gradual",
    "Method",
    "Stage",
    "Step",
    "Weight",
    "build",
    "method",
    "methods",
]
