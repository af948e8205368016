"""Distances between two sets of points, by their samples alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sliced_w1(a: Tensor, b: Tensor, directions: int = 64) -> float:
    """Mean over directions at equal angles of the 1-Wasserstein distance of the projections.

    a, b  [N, 2], equally many
    """
    angle = torch.arange(directions) * math.pi / directions
    unit = torch.stack([angle.cos(), angle.sin()])
    a, b = ((x.float() @ unit).sort(dim=0).values for x in (a, b))
    return (a - b).abs().mean().item()


def jensen_shannon(a: Tensor, b: Tensor, bins: int = 60, reach: float = 2.0) -> float:
    """Jensen-Shannon divergence in nats of the histograms over [-reach, reach]^2, and one cell more
    for all that lies outside. a, b [N, 2].

    Finite samples alone give about bins^2 / 8 (1/N_a + 1/N_b), where the cells are well filled.
    """
    p, q = histogram(a, bins, reach), histogram(b, bins, reach)
    middle = (p + q) / 2
    half = [torch.special.xlogy(r, r / middle.clamp(min=1e-300)).sum() for r in (p, q)]
    return (sum(half) / 2).item()


def histogram(x: Tensor, bins: int, reach: float) -> Tensor:
    """The share of x [N, 2] in each cell of the square and outside [bins^2 + 1]."""
    cell = ((x.double() + reach) / (2 * reach) * bins).floor().long()
    inside = ((cell >= 0) & (cell < bins)).all(1)
    index = torch.where(inside, cell[:, 0] * bins + cell[:, 1], bins * bins)
    return torch.bincount(index, minlength=bins * bins + 1).double() / len(x)
