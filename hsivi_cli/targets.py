"""Densities with a known score: what a layer can be matched to where there is no trained teacher.

A target has `dim`, `log_prob` (x [B, dim] -> [B]), `score` (its gradient in x [B, dim]) and, where
it can, `sample`. Levels are VP levels: at alpha_bar the target is that of sqrt(alpha_bar) x0 +
sigma noise, and its noise prediction is eps = -sigma score. Data sets are handed in; nothing is
read here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .schedule import over, sigma_of


class GaussianMixture:
    """A mixture of Gaussians, with its exact density and score at every VP level.

    sum_m weight_m N(sqrt(alpha_bar) mean_m, alpha_bar cov_m + sigma^2 I), a mixture again, whose
    components keep their eigenvectors.

    mean    [M, dim]
    cov     [M, dim, dim] or [dim, dim], or a number: the variance of round components
    weight  [M]  of any sum; equal weights without
    """

    def __init__(self, mean: Tensor, cov: Tensor | float, weight: Tensor | None = None):
        count, self.dim = mean.shape
        cov = torch.as_tensor(cov, dtype=torch.float64)
        if cov.dim() == 0:
            cov = cov * torch.eye(self.dim, dtype=torch.float64)
        weight = torch.ones(count) if weight is None else weight
        self.mean = mean.double()
        self.weight = weight.double() / weight.sum()
        self.variance, self.axes = torch.linalg.eigh(cov.expand(count, self.dim, self.dim))
        if self.variance.min() <= 0:
            raise ValueError("every covariance of a mixture must be positive definite")
        self.centre = torch.einsum("mji,mj->mi", self.axes, self.mean)  # means along the axes

    def parts(self, x: Tensor, alpha_bar: Tensor | None) -> tuple[Tensor, Tensor]:
        """log of weight times density of each component [B, M], and its score along its own axes
        [B, M, dim]. alpha_bar [B], or None for the target itself."""
        axes, centre, variance, weight = (
            t.to(x) for t in (self.axes, self.centre, self.variance, self.weight)
        )
        along = torch.einsum("bj,mji->bmi", x, axes)
        if alpha_bar is None:
            gap, spread = along - centre, variance[None]
        else:
            level = over(alpha_bar, along)
            gap, spread = along - level.sqrt() * centre, level * variance + (1 - level)
        pull = -gap / spread
        size = (gap * pull - spread.log()).sum(2) - self.dim * math.log(2 * math.pi)
        return weight.log() + size / 2, pull

    def log_prob(self, x: Tensor, alpha_bar: Tensor | None = None) -> Tensor:
        """Log density [B] at x [B, dim], at the levels alpha_bar [B] or at none."""
        return self.parts(x, alpha_bar)[0].logsumexp(1)

    def score(self, x: Tensor, alpha_bar: Tensor | None = None) -> Tensor:
        """grad_x log p [B, dim]: the components' scores, weighted by how likely x is theirs."""
        log_share, pull = self.parts(x, alpha_bar)
        return torch.einsum("bm,bmi,mji->bj", log_share.softmax(1), pull, self.axes.to(x))

    def eps(self, x: Tensor, alpha_bar: Tensor) -> Tensor:
        """The exact noise prediction, -sigma score [B, dim]."""
        return -over(sigma_of(alpha_bar), x) * self.score(x, alpha_bar)

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Independent exact draws [count, dim]."""
        which = torch.multinomial(self.weight.float(), count, replacement=True, generator=rng)
        noise = torch.randn(count, self.dim, generator=rng, dtype=torch.float64)
        along = self.variance[which].sqrt() * noise
        draws = self.mean[which] + torch.einsum("bi,bji->bj", along, self.axes[which])
        return draws.float()


def grid_mixture(side: int = 5, spacing: float = 0.7, sd: float = 0.08) -> GaussianMixture:
    """side x side equal round Gaussians on a square grid about the origin: many modes, well
    apart.
    """
    line = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) * spacing
    return GaussianMixture(torch.cartesian_prod(line, line), sd**2)
