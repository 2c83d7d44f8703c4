"""One-shot pruning of trained models."""

from nmsparsity.pruning.criterion import Criterion, criteria, criterion
from nmsparsity.pruning.magnitude import Magnitude
from nmsparsity.pruning.oneshot import prune

__all__ = ["Criterion", "Magnitude", "criteria", "criterion", "prune"]
