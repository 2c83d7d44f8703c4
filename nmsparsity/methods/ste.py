"""STE: the straight-through estimator alone."""

from nmsparsity.methods.base import Method, method


@method("ste")
class STE(Method):
    """The gradient at the sparse weight updates the dense weight, unmasked: SR-STE with lambda 0.

    W <- W - lr * g(W~), arXiv 2102.04010, section 3.1. Its masks change more from step to step
    than those of SR-STE, and its accuracy is the lower the sparser the network.
    """
