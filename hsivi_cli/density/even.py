"""Normals that fill their space more evenly than chance would."""

from __future__ import annotations

import torch
from torch import Tensor


def even_normals(count: int, dim: int, draw: torch.Generator) -> Tensor:
    """Standard normals [count, dim]: a lattice of the unit cube, moved at random, so that each
    alone is a standard normal.

    point_i = frac(i step + move),  step_d = g^-d,  g^(dim + 1) = g + 1 [Roberts 2018]
    """
    root = 2.0
    for _ in range(50):
        root = (1 + root) ** (1 / (dim + 1))
    step = root ** -torch.arange(1, dim + 1, dtype=torch.float64)
    move = torch.rand(dim, generator=draw, dtype=torch.float64)
    at = (torch.arange(count, dtype=torch.float64)[:, None] * step + move) % 1
    return torch.special.ndtri(at.clamp(1e-9, 1 - 1e-9)).float()
