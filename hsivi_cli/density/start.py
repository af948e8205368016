"""A start for layers over the diffusion bridge: they are taught its probability flow.

The flow carries x_K ~ N(0, I) down the levels without any noise, and what arrives at a level is
distributed as the diffused target there, in shares of its modes that are right: where modes lie
apart, no loss of a layer's own draws knows these.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..config import InferConfig
from ..method.steps import cosine, rng
from .bridge import Bridge, check_score
from .even import even_normals
from .family import Family

PATHS = 2048
NODES = 5  # of a path while s = sigma / sqrt(alpha_bar) falls by a factor e
NOISIEST = 1e-6  # alpha_bar where paths begin: at 1e-3 the target's mean is still seen
LEAST = 0.02  # sigma, from which on a last step goes to 0
JITTER = 0.1  # sd of the noise that is added to paths, for sds to have a measure
RATE, CLIP = 3e-3, 10.0


def follow_paths(family: Family, bridge: Bridge, config: InferConfig) -> None:
    """Teach each layer, by likelihood, where the flow takes what it is given."""
    draw, updates = rng(config.seed, "start"), config.path_steps
    count = min(PATHS, updates * config.batch_size)
    states = paths(bridge, even_normals(count, family.dim, draw).to(family.centre))
    optimizer = torch.optim.Adam(family.parameters(), lr=RATE)
    for step in range(updates):
        rise = min(1.0, (step + 1) / 20)
        optimizer.param_groups[0]["lr"] = RATE * min(rise, cosine(step, updates))
        rows = torch.randint(count, (config.batch_size,), generator=draw)
        noise = JITTER * torch.randn(len(states), len(rows), family.dim, generator=draw).to(states)
        noise[-1] = 0  # the base is drawn as it is
        x = states[:, rows] + noise
        u = torch.randn(len(states), len(rows), family.noise_dim, generator=draw).to(states)
        layers = range(1, len(states))
        loss = -sum(family[k](x[k], u[k]).log_prob(x[k - 1]).mean() for k in layers)
        loss.backward()
        nn.utils.clip_grad_norm_(family.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def paths(bridge: Bridge, x: Tensor) -> Tensor:
    """x_K [N, dim] at all levels of its way down the flow, [K+1, N, dim]: entry K is x itself.

    With y = x / sqrt(alpha_bar) and s = sigma / sqrt(alpha_bar), dy/ds = -sigma score; by Heun's
    method.
    """
    states, least = [x], max(bridge.lowest, LEAST)
    sigmas = [math.sqrt(1 - max(level, NOISIEST)) for level in bridge.tempering]
    for below, above in reversed(list(pairwise(sigmas))):
        ends = [math.log(math.tan(math.asin(sigma))) for sigma in (above, max(below, least))]
        count = max(4, round(NODES * (ends[0] - ends[1])))
        nodes = torch.linspace(*ends, count + 1, dtype=torch.float64).exp().atan().sin().tolist()
        for one, other in pairwise(nodes):
            slope = flow(bridge, x, one)
            ahead = flow(bridge, carried(x, one, other, slope), other)
            x = carried(x, one, other, (slope + ahead) / 2)
        if below < least:
            x = carried(x, nodes[-1], below, flow(bridge, x, nodes[-1]))
        states.append(x)
    return torch.stack(states[::-1])


def flow(bridge: Bridge, x: Tensor, sigma: float) -> Tensor:
    """dy/ds at a level, the noise prediction [N, dim]."""
    return -sigma * check_score(bridge.score(x, 0, 1 - sigma**2), x)


def carried(x: Tensor, sigma: float, other: float, slope: Tensor) -> Tensor:
    """x [N, dim] from one level to another along a slope dy/ds."""
    root, below = math.sqrt(1 - sigma**2), math.sqrt(1 - other**2)
    return below * (x / root + (other / below - sigma / root) * slope)
