"""Magnitude: the largest weights stay."""

from torch import Tensor

from nmsparsity.pruning.criterion import Criterion, criterion


@criterion("magnitude")
class Magnitude(Criterion):
    """Score |w|: no data, no update of the weights that stay."""

    def score(self, weight: Tensor) -> Tensor:
        return weight.abs()
