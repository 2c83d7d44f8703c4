"""The paper's training, written down plainly and on its own: the truth for the sparsifier.

W is a dense parameter that the optimizer owns. Every step the network is evaluated with W~ = E * W
through `functional_call`, and the gradient g(W~) + lambda (1 - E) W is handed to the optimizer
(arXiv 2102.04010, equation 9). Nothing of the package is used.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call


def keep_largest(weight: Tensor, n: int, m: int) -> Tensor:
    """0/1 mask of the n largest |w| of every m along dimension 1, ties to the lower index."""
    moved = weight.movedim(1, -1)
    groups = moved.abs().reshape(-1, m).tolist()
    rows = []
    for group in groups:
        order = sorted(range(m), key=lambda index: (-group[index], index))
        rows.append([1.0 if index in order[:n] else 0.0 for index in range(m)])
    return torch.tensor(rows, dtype=weight.dtype).reshape(moved.shape).movedim(-1, 1)


class PaperNet:
    """A network whose named weights are trained by SR-STE, by the book."""

    def __init__(self, net: nn.Module, sparse: list[str], n: int, m: int, decay: float) -> None:
        self.net, self.sparse, self.n, self.m, self.decay = net, sparse, n, m, decay

    def parameters(self) -> list[nn.Parameter]:
        return list(self.net.parameters())

    def masks(self) -> dict[str, Tensor]:
        named = dict(self.net.named_parameters())
        return {name: keep_largest(named[name].detach(), self.n, self.m) for name in self.sparse}

    def effective(self) -> dict[str, Tensor]:
        masks = self.masks()
        return {
            name: p.detach() * masks[name] if name in masks else p.detach().clone()
            for name, p in self.net.named_parameters()
        }

    def backward(self, loss_of: Callable[[Callable[..., Tensor]], Tensor]) -> Tensor:
        """Accumulate g(W~) in the parameters; `loss_of` gets a callable network."""
        leaves = {name: value.requires_grad_() for name, value in self.effective().items()}
        loss = loss_of(lambda *inputs: functional_call(self.net, leaves, inputs))
        loss.backward()
        for name, parameter in self.net.named_parameters():
            grad = leaves[name].grad
            if grad is not None:
                parameter.grad = grad if parameter.grad is None else parameter.grad + grad
        return loss.detach()

    def add_term(self) -> None:
        """Once per optimizer step: lambda (1 - E) W."""
        named, masks = dict(self.net.named_parameters()), self.masks()
        for name, mask in masks.items():
            dense = named[name]
            term = (1 - mask) * dense.detach()
            dense.grad = dense.grad.add(term, alpha=self.decay)
