"""Whether a target has mass where a family draws nothing: particles from a far wider base come down
the tempering path [sequential Monte Carlo, Del Moral et al. 2006], and are looked for among the
samples.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config import InferConfig
from ..errors import HsiviError
from ..method.losses import normal_log_density
from ..method.steps import rng
from .networks import Networks
from .targets import Target

WIDER = (5.0, 50.0)  # the particles' first sd, in sds of the base; the next where one finds nothing
COUNT, MOST, MOVES = 200, 60, 5  # particles, temperatures, moves at each
ACCEPTED = 0.57  # of Langevin moves, the best share [Roberts & Rosenthal 1998]
BEYOND = 1.5  # times the farthest of the samples from their mean, along a coordinate
FEW = 0.05  # of the particles may end there


@torch.no_grad()
def particles(target: Target, sd: float, draw: torch.Generator, device="cpu") -> Tensor | None:
    """Particles [COUNT, dim] of the target, by way of N(0, sd^2)^(1 - power) target^power; None
    where MOST temperatures are too few.
    """
    x = sd * torch.randn(COUNT, target.dim, generator=draw).to(device)
    power, step = 0.0, sd
    for _ in range(MOST):
        gap = densities(target, x) - base_density(x, sd)
        power, weight = next_power(gap, power)
        if not weight.sum() > 0:
            return None
        x = x[torch.multinomial(weight.cpu(), COUNT, replacement=True, generator=draw)]
        x, step = moved(target, sd, power, x, step, draw)
        if power == 1:
            return x
    return None


def densities(target: Target, x: Tensor) -> Tensor:
    return target.log_prob(x).nan_to_num(-torch.inf, -torch.inf, -torch.inf).double()


def base_density(x: Tensor, sd: float) -> Tensor:
    return normal_log_density(x, torch.zeros_like(x), torch.full_like(x, sd)).double()


def next_power(gap: Tensor, power: float) -> tuple[float, Tensor]:
    """The next power, at which half of the particles count, and their weights [N]."""

    def weight(new: float) -> Tensor:
        return ((new - power) * gap).softmax(0)

    low, high = power, 1.0
    if 1 / weight(1.0).square().sum() >= len(gap) / 2:
        return 1.0, weight(1.0)
    for _ in range(40):
        middle = (low + high) / 2
        enough = 1 / weight(middle).square().sum() >= len(gap) / 2
        low, high = (middle, high) if enough else (low, middle)
    return high, weight(high)


def moved(
    target: Target, sd: float, power: float, x: Tensor, step: float, draw: torch.Generator
) -> tuple[Tensor, float]:
    """Particles after MOVES Langevin moves that leave the tempered density as it is, and the step
    that suits the next.
    """

    def known(x: Tensor) -> tuple[Tensor, Tensor]:
        value = power * densities(target, x) + (1 - power) * base_density(x, sd)
        pull = power * target.score(x) - (1 - power) * x / sd**2
        return value, pull.nan_to_num(0, 0, 0)

    def way(start: Tensor, pull: Tensor, end: Tensor) -> Tensor:
        gap = end - start - step**2 / 2 * pull
        return -gap.square().sum(1).double() / (2 * step**2)

    value, pull = known(x)
    for _ in range(MOVES):
        other = x + step**2 / 2 * pull + step * torch.randn(x.shape, generator=draw).to(x)
        there, back = known(other)
        ratio = there - value + way(other, back, x) - way(x, pull, other)
        chance = torch.rand(len(x), generator=draw, dtype=torch.float64).to(x.device)
        accepted = chance.log() < ratio
        x, pull = (torch.where(accepted[:, None], *p) for p in ((other, x), (back, pull)))
        value = torch.where(accepted, there, value)
        step *= math.exp(accepted.double().mean().item() - ACCEPTED)
    return x, step


def missed(networks: Networks, config: InferConfig) -> str | None:
    """That particles end where none of the averaged family's samples lie, in words. The diffusion
    bridge's points know how far the target reaches.

    config  resolved
    """
    seed = config.seed
    family, bridge = networks.ema, networks.bridge
    if bridge.kind != "geometric":
        return None
    samples = family.marginals(10_000, seed)[0]
    middle = samples.mean(0)
    reach = BEYOND * (samples - middle).abs().amax(0)
    for wider in WIDER:
        sd, draw = wider * bridge.base_scale, rng(seed, "elsewhere")
        try:
            found = particles(bridge.target, sd, draw, family.centre.device)
        except HsiviError:  # a user's function may fail so far away, and the run is over
            found = None
        if found is None:
            continue
        share = ((found - middle).abs() > reach).any(1).double().mean().item()
        if share > FEW:
            frame = "" if config.frame == "none" else "--frame none with "
            return (
                f"of particles that come down the tempering path from {wider:g} times the base's "
                f"sd, {share:.0%} end where no sample lies: the target has mass further out than "
                f"the base, as modes far apart are; try {frame}a --base-scale above "
                f"{config.base_scale:g} that reaches them"
            )
    return None
