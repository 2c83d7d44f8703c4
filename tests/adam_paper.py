"""STEP and Adam written down plainly from their equations: the truth for the method ``step``.

arXiv 2302.01172 on top of Adam (1412.6980) and AdamW (1711.05101). Tensors in, tensors out, fp32;
nothing of the package is used.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Step:
    """All parameters of one training, and the two phases of it.

    Attributes:
        sparse: which of the parameters get masks, by index.
        window, eps: those of AutoSwitch; earliest and latest in steps.
    """

    parameters: list[Tensor]
    sparse: dict[int, tuple[int, int]]
    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    decoupled: bool
    window: int
    earliest: float
    latest: float
    threshold: float
    decay: float = 0.0
    t: int = 0
    switched_at: int | None = None
    changes: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.first = [torch.zeros_like(w) for w in self.parameters]
        self.second = [torch.zeros_like(w) for w in self.parameters]

    def masks(self) -> list[Tensor]:
        masks = [torch.ones_like(w) for w in self.parameters]
        if self.switched_at is not None:
            for index, (n, m) in self.sparse.items():
                masks[index] = largest(self.parameters[index], n, m)
        return masks

    def effective(self) -> list[Tensor]:
        """What the network computes with."""
        return [w * mask for w, mask in zip(self.parameters, self.masks(), strict=True)]

    def step(self, grads: list[Tensor]) -> None:
        b1, b2 = self.betas
        self.t += 1
        moved, count = 0.0, 0
        for i, (w, mask, grad) in enumerate(zip(self.parameters, self.masks(), grads, strict=True)):
            g = grad + self.decay * (1 - mask) * w
            if self.decoupled:
                w = w - self.lr * self.weight_decay * w
            else:
                g = g + self.weight_decay * w
            self.first[i] = b1 * self.first[i] + (1 - b1) * g
            first = self.first[i] / (1 - b1**self.t)
            if self.switched_at is None:
                second = b2 * self.second[i] + (1 - b2) * g * g
                moved += float((second - self.second[i]).abs().double().sum())
                count += second.numel()
                self.second[i] = second
                denominator = (second / (1 - b2**self.t)).sqrt() + self.eps
            else:
                denominator = self.second[i].sqrt() + self.eps
            self.parameters[i] = w - self.lr * first / denominator
        if self.switched_at is None:
            self.changes = [*self.changes, moved / count][-self.window :]
            settled = sum(self.changes) / len(self.changes) < self.threshold
            if self.t >= self.earliest and (settled or self.t >= self.latest):
                self.switched_at = self.t
                self.second = [second / (1 - b2**self.t) for second in self.second]


def largest(weight: Tensor, n: int, m: int) -> Tensor:
    """0/1 mask of the n largest |w| of every m in a row, ties to the lower index."""
    groups = weight.abs().reshape(-1, m)
    order = groups.argsort(dim=1, descending=True, stable=True)[:, :n]
    return torch.zeros_like(groups).scatter(1, order, 1.0).reshape(weight.shape)
