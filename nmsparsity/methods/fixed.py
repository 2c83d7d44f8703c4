"""Fixed: a magnitude mask taken once, then training under it."""

from torch import Tensor

from nmsparsity.methods.base import Method, Step, Weight, method


@method("fixed")
class Fixed(Method):
    """The mask of the weights as they are now; pruned weights stay zero from here on.

    The way of ASP (arXiv 2104.08378): train a dense network, take the magnitude mask once, and
    train again with the same recipe and a new optimizer. The model must therefore hold *trained*
    weights when `sparsify` is called. It costs a second training.
    """

    keeps_mask = True

    def score(self, dense: Tensor, mask: Tensor | None) -> Tensor:
        """The magnitude the first time, the mask itself from then on."""
        return dense.abs() if mask is None else mask.to(dense.dtype)

    def before_step(self, weight: Weight, step: Step) -> None:
        """Pruned weights get no gradient."""
        assert weight.grad is not None
        assert weight.mask is not None
        weight.grad.mul_(weight.mask)

    def after_step(self, weight: Weight, step: Step) -> None:
        """Momentum from before the pruning may have moved pruned weights: back to zero."""
        assert weight.mask is not None
        weight.dense.mul_(weight.mask)
