"""One-shot pruning of trained models."""

from nmsparsity.prune.criterion import Criterion, criteria, criterion
from nmsparsity.prune.magnitude import Magnitude
from nmsparsity.prune.oneshot import prune

__all__ = ["Criterion", "Magnitude", "criteria", "criterion", "prune"]
