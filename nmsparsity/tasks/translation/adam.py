"""AdamW and its schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from nmsparsity.tasks.schedule import warmup_cosine, warmup_inverse_sqrt


@dataclass(frozen=True)
class AdamW:
    """AdamW (arXiv 1711.05101) with a linear warm-up, then a decay per step.

    Args:
        lr: the peak learning rate.
        beta1: of the gradient's average,
        beta2: and of its square's.
        eps: added to the square root of the latter.
        weight_decay: on matrices; not on embeddings, norms and biases.
        schedule: ``"inverse_sqrt"`` falls with the root of the step (arXiv 1706.03762),
            ``"cosine"`` to 0 at the end of training.
        warmup_steps: optimizer steps until the peak.
    """

    lr: float = 7e-4
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-9
    weight_decay: float = 0.0
    schedule: Literal["inverse_sqrt", "cosine"] = "inverse_sqrt"
    warmup_steps: int = 4000

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps {self.warmup_steps}: want 0 or more")

    def build(self, model: nn.Module) -> torch.optim.AdamW:
        """The optimizer of a model's parameters."""
        embeddings = {
            id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
        }
        trained = [p for p in model.parameters() if p.requires_grad]
        decayed = [p for p in trained if p.dim() > 1 and id(p) not in embeddings]
        others = [p for p in trained if p.dim() <= 1 or id(p) in embeddings]
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        betas = (self.beta1, self.beta2)
        return torch.optim.AdamW(groups, lr=self.lr, betas=betas, eps=self.eps)

    def share(self, step: int, steps_an_epoch: int, total: int) -> float:
        """The share of the peak learning rate at an optimizer step of ``total``."""
        if self.schedule == "inverse_sqrt":
            return warmup_inverse_sqrt(step, self.warmup_steps)
        return warmup_cosine(step, total, self.warmup_steps)
