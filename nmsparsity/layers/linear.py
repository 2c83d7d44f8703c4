"""A linear layer with a packed weight."""

from __future__ import annotations

from torch import Tensor

from nmsparsity.layers.packed import PackedLayer


class PackedLinear(PackedLayer):
    """`nn.Linear`, or Hugging Face's ``Conv1D``, with a packed weight.

    >>> import torch
    >>> from torch import nn
    >>> from nmsparsity.layers import pack
    >>> from nmsparsity.pattern import Pattern
    >>> plain = nn.Linear(4, 2)
    >>> _ = plain.weight.data.mul_(torch.tensor([1.0, 0.0, 1.0, 0.0]))
    >>> packed = pack(plain, Pattern(2, 4), "fc")
    >>> x = torch.randn(3, 4)
    >>> bool((packed(x) == plain(x)).all())
    True
    """

    def forward(
        self, input: Tensor, residual: Tensor | None = None, activation: str = "none"
    ) -> Tensor:
        """``[..., in]`` to ``[..., out]``; the residual is shaped like the result."""
        return self.multiply(input, residual, activation)
