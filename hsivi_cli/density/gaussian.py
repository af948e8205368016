"""The Gaussian nearest to a density: variational inference's baseline, and its layers' whitening.

    q = N(mean, factor factor^T),    least KL(q || p) = -E_q[log p] - log |factor| - constants

The search begins at Laplace's approximation, by a Newton iteration for the mode, and goes on in the
coordinates in which that one is N(0, I), where one learning rate suits every target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ..errors import HsiviError
from ..method.losses import reverse_kl_loss
from ..method.steps import cosine
from .targets import Target


@dataclass(frozen=True)
class Affine(Target):
    """A target seen through x = centre + factor y, as a density of y: whitened, where centre and
    factor are those of its Gaussian.

    centre  [dim]
    factor  [dim, dim]
    """

    target: Target
    centre: Tensor
    factor: Tensor

    @property
    def dim(self) -> int:
        return self.target.dim

    def out(self, y: Tensor) -> Tensor:
        """The points x that y [B, dim] stand for."""
        return self.centre.to(y) + y @ self.factor.to(y).T

    @cached_property
    def log_stretch(self) -> Tensor:
        """log |determinant of the factor|"""
        return torch.linalg.slogdet(self.factor)[1]

    def log_prob(self, y: Tensor) -> Tensor:
        return self.target.log_prob(self.out(y)) + self.log_stretch

    def score(self, y: Tensor) -> Tensor:
        return self.target.score(self.out(y)) @ self.factor.to(y)


RATE, BATCH, CLIP = 0.02, 64, 5.0
# a log sd, or a mean in sds, beyond Laplace's: a bound without end takes them to 10 in 1,000 steps
RUNAWAY = 7.0


def fit_gaussian(
    target: Target,
    start: Tensor,
    full: bool,
    rng: torch.Generator,
    scale: float = 1.0,
    steps: int = 1000,
) -> tuple[Tensor, Tensor]:
    """The mean [dim] and factor [dim, dim] of the Gaussian with the least KL(q || target); the
    factor is diagonal where not `full`.

    The gradient holds q's own parameters in log q, so that its noise vanishes as q reaches p
    [Roeder et al. 2017].

    Refuses a target whose bound grows without end, as an improper density's does.

    start  [dim]  where the search for a mode begins
    scale         sd of q where log p says nothing of its own
    """
    mode, spread, ended = laplace(target, start, scale)
    white = Affine(target, mode, spread)
    if not full:
        white = Affine(target, white.centre, white.factor.square().sum(1).sqrt().diag())
    mean, log_sd = (nn.Parameter(torch.zeros_like(start)) for _ in range(2))
    lower = nn.Parameter(torch.zeros_like(white.factor))
    trained = [mean, log_sd, lower] if full else [mean, log_sd]
    optimizer = torch.optim.Adam(trained, lr=RATE)

    def factor() -> Tensor:
        return log_sd.exp().diag() + lower.tril(-1)

    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * cosine(step, steps)
        noise = torch.randn(BATCH, len(start), generator=rng).to(start)
        own = factor()
        y = mean + noise @ own.T
        with torch.no_grad():
            q_eps = torch.linalg.solve_triangular(own.T, noise.T, upper=True).T
            p_eps = -white.score(y)
            # a point that was thrown too far says nothing
            p_eps = p_eps.where(torch.isfinite(p_eps).all(1, keepdim=True), q_eps)
        reverse_kl_loss(y, q_eps, p_eps, 1.0).mean().backward()
        nn.utils.clip_grad_norm_(trained, CLIP * math.sqrt(len(start)))
        optimizer.step()
        optimizer.zero_grad()
    if (widest := log_sd.detach().max()) > RUNAWAY:
        raise HsiviError(
            f"the target's bound runs away: along one direction the best Gaussian's sd grows by "
            f"{widest.exp():.3g} and on; the density is improper, or flat over that far"
        )
    if not ended and mean.detach().abs().max() > RUNAWAY:
        at = ", ".join(f"{value:.3g}" for value in white.out(mean.detach()[None])[0, :8].tolist())
        raise HsiviError(
            f"the target's bound runs away: its log density rises and rises, at x = ({at}) too; "
            "the density is improper, or its coordinates have to be scaled"
        )
    with torch.no_grad():
        return white.out(mean[None])[0], white.factor @ factor()


def laplace(
    target: Target, start: Tensor, scale: float, steps: int = 50
) -> tuple[Tensor, Tensor, bool]:
    """A mode of the target [dim], a factor of the inverse negative Hessian there [dim, dim], and
    whether the search has ended there: in a density without end it never does.

    Directions of positive curvature are climbed too, their curvature's sign turned.
    """
    x = start[None]
    value, damping, ended = target.log_prob(x).item(), 0.0, False
    for _ in range(steps):
        gradient, values, axes = curvature(target, x, scale)
        along = (gradient @ axes) / (values + damping)
        proposed = x + (axes @ along).to(x)
        found = target.log_prob(proposed).item()
        if found >= value:
            gain, x, value, damping = found - value, proposed, found, damping / 5
            if ended := gain < 1e-4:
                break
        else:  # also where it is nan
            damping = max(10 * damping, 1e-3 * values.max().item())
    _, values, axes = curvature(target, x, scale)
    return x[0], (axes / values.sqrt()).to(x), ended


def curvature(target: Target, x: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of log p at x [1, dim]: its gradient [dim], and the negative Hessian's absolute eigenvalues
    [dim] and axes [dim, dim], float64. Where there is none it stands as -1 / scale^2.
    """
    dim = x.shape[1]
    with torch.enable_grad():
        at = x.detach().expand(dim, -1).clone().requires_grad_()
        score = target.score(at)  # one row a coordinate: one pass gives the whole Hessian
        hessian = None
        if score.requires_grad:
            (hessian,) = torch.autograd.grad(score.diagonal().sum(), at)
    if hessian is None or not torch.isfinite(hessian).all():
        hessian = -torch.eye(dim).to(x) / scale**2
    hessian = hessian.double()
    values, axes = torch.linalg.eigh(-(hessian + hessian.T) / 2)
    values = values.abs()
    curved = values > 1e-6 / scale**2
    return score[0].detach().double(), values.where(curved, 1 / scale**2), axes
