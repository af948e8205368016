"""Weights that train, and the bfloat16 copies of them that a network is called with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Lowered:
    """Copies of weights in bfloat16, made once an update; autocast would make them at every call.

    weights  float32: what optimizers, averages and checkpoints know
    copies   as many, to which gradients come. A network that is called as it stands has none
    """

    def __init__(self, weights: Sequence[Tensor] = (), copies: Sequence[Tensor] = ()) -> None:
        self.weights, self.copies = list(weights), list(copies)

    @torch.no_grad()
    def renew(self) -> None:
        """Make the copies anew, without gradients."""
        for copy in self.copies:
            copy.grad = None
        if self.copies:
            torch._foreach_copy_(self.copies, self.weights)

    @torch.no_grad()
    def collect(self) -> None:
        """Add the copies' gradients to those of the weights, in float32 as autocast adds them."""
        pairs = zip(self.weights, self.copies, strict=True)
        pairs = [(weight, copy) for weight, copy in pairs if copy.grad is not None]
        first = [(weight, copy) for weight, copy in pairs if weight.grad is None]
        for weight, copy in pairs:
            if weight.grad is not None:
                weight.grad += copy.grad
        for weight, _ in first:
            weight.grad = torch.empty_like(weight)
        if first:
            torch._foreach_copy_([w.grad for w, _ in first], [c.grad for _, c in first])
        for _, copy in pairs:
            copy.grad = None

    def requires_grad_(self, wanted: bool) -> None:
        for copy in self.copies:
            copy.requires_grad_(wanted)
