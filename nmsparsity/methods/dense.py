"""Dense: no sparsity, through the same code."""

from nmsparsity.methods.base import Method, method


@method("dense")
class Dense(Method):
    """Nothing is made sparse: the baseline of a comparison, with the same loop and recipe."""
