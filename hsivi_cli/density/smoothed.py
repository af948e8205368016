"""A density in the plane or on a line at VP levels that no formula gives: by weighted points."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from ..errors import HsiviError
from ..method.steps import rng
from .targets import Target

PLANE = 2  # coordinates up to which points, and mixing samples, cover a density
POINTS = 2000
NODES, REACH, FINE = 801, 1000.0, 1.0  # of the grid an axis: nodes, end, where it coarsens
HELD = 0.05  # share of the points' weight that may lie beyond half of the grid
WIDTHS, MOST_LOST = (0.04, 0.08, 0.15, 0.3), 0.25  # nats: 25 modes of sd .08 lose .21, a funnel .3
FEWEST = 50  # points that the weights must be worth: a banana's are worth 1,300, a funnel's 700


class Smoothed(Target):
    """A target at VP levels, by points x_m of it.

    sum_m weight_m N(sqrt(alpha_bar) x_m, sigma^2 I)

    At alpha_bar = 1 it is the target itself; between, a sigma below `lowest`, where points would be
    seen, stands for `lowest`.
    """

    levels, lowest = True, 0.15

    def __init__(self, target: Target, seed: int = 0):
        self.target, self.dim, self.exact = target, target.dim, target.exact
        self.points, self.log_weight, self.log_mass = weighted_points(target, seed)
        if wrong := endless(target, seed):
            raise HsiviError(wrong)
        if (worth := 1 / self.log_weight.exp().square().sum().item()) < FEWEST:
            raise HsiviError(
                f"the target's mass lies on {worth:.0f} of {POINTS} points: scale and move its "
                "coordinates until it is about 0 and some units wide, or take --bridge geometric"
            )

    def lost(self) -> float:
        """KL(target || a mixture of normals about its points) in nats, of the one width that takes
        away least; no point stands for the target where it lies itself.
        """
        x = self.points
        log_p, weight = self.target.log_prob(x).double() - self.log_mass, self.log_weight.exp()
        square = torch.cdist(x, x).square().fill_diagonal_(torch.inf)
        found = []
        for width in WIDTHS:
            near = (self.log_weight - square / (2 * width**2)).logsumexp(1)
            near = near - self.dim / 2 * math.log(2 * math.pi * width**2)
            found.append((weight * (log_p - near)).sum().item())
        return min(found)

    def mixture(self, x: Tensor, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
        """log of each point's share of x's density [B, M], and sigma^2 [B, 1]."""
        points, level = self.points.to(x), alpha_bar.to(x)[:, None]
        var = (1 - level).clamp(min=self.lowest**2)
        square = x.square().sum(1, keepdim=True) + level * points.square().sum(1)
        square = square - 2 * level.sqrt() * (x @ points.T)
        return self.log_weight.to(x) - square / (2 * var), var

    def log_prob(self, x: Tensor, alpha_bar: Tensor | None = None) -> Tensor:
        if alpha_bar is None:
            return self.target.log_prob(x)
        share, var = self.mixture(x, alpha_bar)
        smooth = share.logsumexp(1) - self.dim / 2 * (2 * math.pi * var[:, 0]).log()
        return in_rows(smooth, alpha_bar == 1, x, self.target.log_prob)

    def score(self, x: Tensor, alpha_bar: Tensor | None = None) -> Tensor:
        if alpha_bar is None:
            return self.target.score(x)
        share, var = self.mixture(x, alpha_bar)
        mean = alpha_bar.to(x).sqrt()[:, None] * (share.softmax(1) @ self.points.to(x))
        return in_rows((mean - x) / var, alpha_bar == 1, x, self.target.score)

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        return self.target.sample(count, rng)


def in_rows(values: Tensor, rows: Tensor, x: Tensor, function) -> Tensor:
    """values [B, ...], those of the chosen rows replaced by function(x)."""
    if not rows.any():
        return values
    return values.index_put((rows.nonzero()[:, 0],), function(x[rows]))


@lru_cache(maxsize=2)
@torch.no_grad()
def weighted_points(target: Target, seed: int) -> tuple[Tensor, Tensor, float]:
    """Points [M, dim] and their log weights [M], by which they stand for the target; log of its
    mass.

    Cells of a grid, whose width grows with the distance from 0, are taken by the root of their
    mass, so that tails have their share of points; each point is moved within its cell, and its
    weight makes up for how likely it was.
    """
    end = math.asinh(REACH / FINE)
    edge = FINE * torch.linspace(-end, end, NODES, dtype=torch.float64).sinh()
    cells = len(edge) - 1
    middle, width = ((edge[1:] + edge[:-1]) / 2).float(), edge.diff().float()
    x = torch.cartesian_prod(*[middle] * target.dim).view(-1, target.dim)
    size = torch.cartesian_prod(*[width] * target.dim).view(-1, target.dim)
    area, draw = size.double().log().sum(1), rng(seed, "points")
    density = torch.cat([target.log_prob(part) for part in x.split(20_000)]).double()
    share = density.nan_to_num(-torch.inf, -torch.inf, -torch.inf) / 2 + area
    share = (share - share.max()).exp().view(1, *[cells] * target.dim)
    pool = nn.functional.max_pool1d if target.dim == 1 else nn.functional.max_pool2d
    share = pool(share, 3, 1, 1).flatten()  # a cell may hold more than its middle tells
    share = share / share.sum()
    place = (torch.arange(POINTS) + torch.rand(1, generator=draw)) / POINTS
    which = torch.searchsorted(share.cumsum(0), place.double()).clamp(max=len(share) - 1)
    points = x[which] + (torch.rand(POINTS, target.dim, generator=draw) - 0.5) * size[which]
    weight = target.log_prob(points).double() - share[which].log() + area[which]
    weight = weight.nan_to_num(-torch.inf, -torch.inf, -torch.inf)
    log_mass = weight.logsumexp(0).item() - math.log(POINTS)
    return points, weight.log_softmax(0).float(), log_mass


def endless(target: Target, seed: int) -> str | None:
    """That a target's mass goes on to the end of the grid, in words."""
    points, log_weight, _ = weighted_points(target, seed)
    if log_weight.exp()[(points.abs() > REACH / 2).any(1)].sum().item() < HELD:
        return None
    return (
        f"the target's mass does not end within {REACH:g} of 0: it is improper, so that no samples "
        "are its own, or its coordinates have to be scaled"
    )
