"""Densities with a known score: what a layer can be matched to where there is no trained teacher.

Levels are VP levels: at alpha_bar a target is the density of sqrt(alpha_bar) x0 + sigma noise, and
its noise prediction is eps = -sigma score. Data sets are handed in; nothing is read here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..method.schedule import over, sigma_of


@runtime_checkable
class Target(Protocol):
    """What inference asks of a density.

    dim     number of coordinates
    levels  whether log_prob and score take VP levels too: alpha_bar [B], after x
    exact   whether there are exact draws of it
    """

    dim: int
    levels: bool = False
    exact: bool = False

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density [B] at x [B, dim], up to a constant."""

    def score(self, x: Tensor) -> Tensor:
        """grad_x log p [B, dim], itself differentiable in x where the density allows it."""

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Independent exact draws [count, dim]."""
        raise ValueError("this target has no exact sampler")


class GaussianMixture(Target):
    """A mixture of Gaussians, with its exact density and score at every VP level.

    sum_m weight_m N(sqrt(alpha_bar) mean_m, alpha_bar cov_m + sigma^2 I), a mixture again, whose
    components keep their eigenvectors.

    mean    [M, dim]
    cov     [M, dim, dim] or [dim, dim], or a number: the variance of round components
    weight  [M]  of any sum; equal weights without
    """

    levels = exact = True

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


class Density(Target):
    """A target given by its log density alone; the score is autograd's.

    log_prob  x [B, dim] -> [B], up to a constant; where `levels`, also at the levels alpha_bar [B]
    draw      (count, rng) -> exact draws [count, dim], where there is a way
    """

    def __init__(self, log_prob: Callable, dim: int, draw: Callable | None = None, levels=False):
        self.log_prob, self.dim, self.draw = log_prob, dim, draw
        self.levels, self.exact = levels, draw is not None

    def score(self, x: Tensor, alpha_bar: Tensor | None = None) -> Tensor:
        """grad_x log p [B, dim], itself differentiable where x is. Raises ValueError where log_prob
        has the wrong shape or no gradient."""
        graph = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            x = x if graph else x.detach().requires_grad_()
            value = self.log_prob(x) if alpha_bar is None else self.log_prob(x, alpha_bar)
            if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
                found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"the log density of points {list(x.shape)} must be one number a point, "
                    f"[{len(x)}], not {found}"
                )
            gradient = None
            if value.requires_grad:
                gradient = torch.autograd.grad(
                    value.sum(), x, create_graph=graph, allow_unused=True
                )[0]
        if gradient is None:
            raise ValueError(
                "the log density has no gradient in x: compute it by torch functions of x, without "
                "detach, no_grad or numpy"
            )
        return gradient

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Independent exact draws [count, dim]. Raises ValueError where there is no way."""
        return self.draw(count, rng) if self.exact else super().sample(count, rng)


def banana() -> Density:
    """(z1, z1^2 + z2 + 1) of z ~ N(0, [[1, .9], [.9, 1]])."""
    gaussian = GaussianMixture(torch.zeros(1, 2), torch.tensor([[1.0, 0.9], [0.9, 1.0]]))

    def log_prob(x):  # the map's determinant is 1
        return gaussian.log_prob(torch.stack([x[:, 0], x[:, 1] - x[:, 0].square() - 1], 1))

    def draw(count, rng):
        z = gaussian.sample(count, rng)
        return torch.stack([z[:, 0], z[:, 0].square() + z[:, 1] + 1], 1)

    return Density(log_prob, 2, draw)


def two_gaussians() -> GaussianMixture:
    """1/2 N((-2, 0), I) + 1/2 N((2, 0), I)."""
    return GaussianMixture(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), 1.0)


def uneven_gaussians() -> GaussianMixture:
    """.8 N((-2, 0), .3^2 I) + .2 N((2, 0), .3^2 I)."""
    means = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])
    return GaussianMixture(means, 0.09, torch.tensor([0.8, 0.2]))


def uneven_grid() -> GaussianMixture:
    """The 25 Gaussians with weights 1 to 5 in each row and each column."""
    row, column = torch.cartesian_prod(torch.arange(5), torch.arange(5)).T
    even = grid_mixture()
    return GaussianMixture(even.mean, 0.08**2, 1 + (2 * row + column) % 5)


def x_shape() -> GaussianMixture:
    """Two Gaussians at one place, correlated .9 and -.9."""
    cov = torch.tensor([[[2.0, 1.8], [1.8, 2.0]], [[2.0, -1.8], [-1.8, 2.0]]])
    return GaussianMixture(torch.zeros(2, 2), cov)


def checkerboard(side: int = 4, cell: float = 1.0, edge: float = 0.1) -> Density:
    """The black cells of a side x side board about the origin, uniform, with soft edges: a normal
    of sd `edge` is added, so that there is a score everywhere.
    """
    line = (torch.arange(side) - (side - 1) / 2) * cell
    cells = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    row, column = cells[cells.sum(1) % 2 == 0].T
    centre = torch.stack([line[row], line[column]], 1)

    def log_prob(x, alpha_bar=None):
        level = torch.ones_like(x[:, 0]) if alpha_bar is None else alpha_bar.to(x)
        level = level[:, None, None]
        half, width = level.sqrt() * cell / 2, (level * edge**2 + 1 - level).sqrt()
        half = half.clamp(min=1e-3)  # at alpha_bar 0 a cell is a point: log 0 - log 0
        distance = (x[:, :, None] - level.sqrt() * line.to(x)).abs()  # [B, 2, side]
        high = torch.special.log_ndtr((half - distance) / width)
        low = torch.special.log_ndtr((-half - distance) / width)
        side_log = high + torch.log1p(-(low - high).exp().clamp(max=1 - 1e-6)) - (2 * half).log()
        return (side_log[:, 0, row] + side_log[:, 1, column]).logsumexp(1) - math.log(len(centre))

    def draw(count, rng):
        which = torch.randint(len(centre), (count,), generator=rng)
        spread = (torch.rand(count, 2, generator=rng) - 0.5) * cell
        return centre[which] + spread + edge * torch.randn(count, 2, generator=rng)

    return Density(log_prob, 2, draw, levels=True)


def swiss_roll(count: int = 150, sd: float = 0.15) -> Density:
    """A spiral (t cos t, t sin t) / 5, t from 1.5 pi to 4.5 pi: `count` round Gaussians, nearer to
    one another than their sd, so that no beads are seen.
    """
    t = 1.5 * math.pi * (1 + 2 * (torch.arange(count, dtype=torch.float64) + 0.5) / count)
    mixture = GaussianMixture(torch.stack([t * t.cos(), t * t.sin()], 1) / 5, sd**2)

    def log_prob(x, alpha_bar=None):  # round components need no axes: many times as fast
        level = torch.ones_like(x[:, :1]) if alpha_bar is None else alpha_bar.to(x)[:, None]
        mean, var = mixture.mean.to(x), level * sd**2 + 1 - level
        square = level * mean.square().sum(1) - 2 * level.sqrt() * (x @ mean.T)
        each = (x.square().sum(1, keepdim=True) + square) / var
        return (-each / 2 - (2 * math.pi * var).log()).logsumexp(1) - math.log(count)

    return Density(log_prob, 2, mixture.sample, levels=True)


def circles(radii: tuple[float, ...] = (1.0, 2.5), sd: float = 0.1) -> Density:
    """Concentric circles of equal weight, each a uniform angle with a normal added.

    p(x) = sum_R exp(-(|x| - R)^2 / 2 sd^2) I0e(|x| R / sd^2) / (2 pi sd^2), I0e the scaled Bessel
    function.
    """
    radius = torch.tensor(radii)

    def log_prob(x, alpha_bar=None):
        level = torch.ones_like(x[:, :1]) if alpha_bar is None else alpha_bar.to(x)[:, None]
        big, var = level.sqrt() * radius.to(x), level * sd**2 + 1 - level
        small = (x.square().sum(1, keepdim=True) + 1e-12).sqrt()  # |x| has no gradient at 0
        each = -(small - big).square() / (2 * var) + torch.special.i0e(small * big / var).log()
        return (each - (2 * math.pi * var).log()).logsumexp(1) - math.log(len(radii))

    def draw(count, rng):
        which = radius[torch.randint(len(radii), (count,), generator=rng)]
        angle = 2 * math.pi * torch.rand(count, generator=rng)
        ring = which[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
        return ring + sd * torch.randn(count, 2, generator=rng)

    return Density(log_prob, 2, draw, levels=True)


def funnel(dim: int = 2, sd: float = 3.0) -> Density:
    """x1 ~ N(0, sd^2), the others N(0, exp(x1)) [Neal 2003]."""

    def log_prob(x):
        first, rest = x[:, 0], x[:, 1:]
        outer = -first.square() / (2 * sd**2) - math.log(sd)
        inner = -rest.square().sum(1) * (-first).exp() / 2 - (dim - 1) * first / 2
        return outer + inner - dim / 2 * math.log(2 * math.pi)

    def draw(count, rng):
        z = torch.randn(count, dim, generator=rng)
        first = sd * z[:, :1]
        return torch.cat([first, (first / 2).exp() * z[:, 1:]], 1)

    return Density(log_prob, dim, draw)


def drift(x: Tensor) -> Tensor:
    return 10 * x * (1 - x.square()) / (1 + x.square())


def diffusion_path(steps: int = 100, every: int = 5, sd: float = 0.1, seed: int = 0) -> Density:
    """Posterior over a path of dx = 10 x (1 - x^2) / (1 + x^2) dt + dw, x(0) = 0, T = 1, given
    every `every`-th of its `steps` Euler points with normal errors of this sd.

    The observations are those of a path that the same drift simulates, chosen by the seed.
    """
    dt = 1 / steps
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(steps, generator=rng, dtype=torch.float64)
    path = [torch.zeros((), dtype=torch.float64)]
    for step in noise:
        path.append(path[-1] + drift(path[-1]) * dt + math.sqrt(dt) * step)
    path = torch.stack(path[1:])[every - 1 :: every]
    seen = path + sd * torch.randn(len(path), generator=rng, dtype=torch.float64)

    def log_prob(x):
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        jump = x - before - drift(before) * dt
        error = x[:, every - 1 :: every] - seen.to(x)
        return -jump.square().sum(1) / (2 * dt) - error.square().sum(1) / (2 * sd**2)

    return Density(log_prob, steps)


TARGETS = {
    "banana": banana,
    "two-gaussians": two_gaussians,
    "x-shape": x_shape,
    "checkerboard": checkerboard,
    "swiss-roll": swiss_roll,
    "circles": circles,
    "25-gaussians": grid_mixture,
    "uneven-gaussians": uneven_gaussians,
    "25-uneven": uneven_grid,
    "funnel": funnel,
    "diffusion-path": diffusion_path,
}
