"""Hierarchical semi-implicit inference of a density: its layers, bridge and rounds of training.

    x_K ~ N(0, base_scale^2 I),    x_{k-1} = keep x_k + net_k(x_k, u_k) + std_k noise,    k = K..1
    a sample = centre + factor x_0

keep^2 = 1 - (start_scale / base_scale)^2, so that before training every marginal is the base. The
*whitening* (centre, factor) is by the target's best Gaussian (gaussian.py) with --frame gaussian,
where training begins at it and learns what it lacks; else it is the identity.

std_k is a number a coordinate, in the plane a function of x_k and u_k too; u_k are extra normal
inputs (none unless asked for). Each marginal is matched to a bridge p_{k-1} between the base and
the target p_0, by losses.py, where sigma = 1 makes an eps minus a score. Over the diffusion bridge
layers begin as its flow (start.py) and are judged at higher levels beside their own.

A *round* is a roll-out, the fake scores' updates (where the objective has them) and a student
update, as in distill.py; everything random is a function of (seed, round, purpose).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..config import InferConfig
from ..method.steps import rng
from .gaussian import Affine
from .normal import Normal
from .smoothed import PLANE
from .targets import Target


class FourierFeatures(nn.Module):
    """x beside sines and cosines of it, `octaves` of them from a period of 8 base_scale down."""

    def __init__(self, octaves: int, base_scale: float):
        super().__init__()
        self.frequency = [math.pi / 4 / base_scale * 2**i for i in range(octaves)]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(
            [x, *(f(w * x) for w in self.frequency for f in (torch.sin, torch.cos))], 1
        )


def mlp(inputs: int, outputs: int, config: InferConfig) -> nn.Sequential:
    """`depth` hidden blocks of SiLU units over x and its sines; the last block begins at zero."""
    widths = [inputs * (1 + 2 * config.sines)] + [config.width] * config.depth
    blocks = [b for a, b in pairwise(widths) for b in (nn.Linear(a, b), nn.SiLU())]
    last = nn.Linear(config.width, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(FourierFeatures(config.sines, config.base_scale), *blocks, last)


REACH = 6.0  # of log std about log_scale: a funnel's neck and mouth, and no overflow


class Layer(nn.Module):
    """q(x_{k-1} | x_k, u_k): a normal of mean keep x_k + shift(x_k, u_k).

    In the plane its sds are functions too, exp(log_scale + REACH tanh(widen / REACH)), and it may
    lie along a curve (normal.py); elsewhere its sds are exp(log_scale), one a coordinate.
    """

    def __init__(self, dim: int, config: InferConfig):
        super().__init__()
        self.dim, self.plane = dim, dim <= PLANE
        outputs = 2 * dim + (dim == 2) if self.plane else dim
        self.net = mlp(dim + config.noise_dim, outputs, config)
        self.log_scale = nn.Parameter(torch.full((dim,), math.log(config.start_scale)))
        self.keep = math.sqrt(max(0.0, 1 - (config.start_scale / config.base_scale) ** 2))

    def forward(self, x: Tensor, u: Tensor) -> Normal:
        """The normals of x_{k-1}."""
        found = self.net(torch.cat([x, u], 1))
        mean = self.keep * x + found[:, : self.dim]
        if not self.plane:
            return Normal(mean, self.log_scale.exp().expand_as(mean))
        widen, lean = found[:, self.dim : 2 * self.dim], found[:, 2 * self.dim :]
        std = (self.log_scale + REACH * (widen / REACH).tanh()).exp()
        return Normal(mean, std, std[:, 1] * lean[:, 0] if lean.shape[1] else None)


@dataclass(frozen=True)
class Visit:
    """What a roll-out saw at layer k: x_k, the normals of x_{k-1}, and x_{k-1}."""

    k: int
    x: Tensor
    normal: Normal
    below: Tensor


class Family(nn.Module):
    """The K layers, k = 1 the one that ends at the samples."""

    def __init__(self, dim: int, config: InferConfig):
        super().__init__()
        self.dim, self.noise_dim, self.base_scale = dim, config.noise_dim, config.base_scale
        self.layers = nn.ModuleList(Layer(dim, config) for _ in range(config.layers))
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("factor", torch.eye(dim))

    def __getitem__(self, k: int) -> Layer:
        return self.layers[k - 1]

    def start(self, count: int, draw: torch.Generator) -> tuple[Tensor, list[Tensor], Tensor]:
        """x_K [count, dim], the noises of all layers from K down, and u [count, K, noise_dim]."""
        layers = len(self.layers)
        x = self.base_scale * torch.randn(count, self.dim, generator=draw)
        noise = [torch.randn(count, self.dim, generator=draw) for _ in range(layers)]
        u = torch.randn(count, layers, self.noise_dim, generator=draw)
        return x.to(self.centre), [n.to(self.centre) for n in noise], u.to(self.centre)

    def visits(self, x: Tensor, noise: Sequence[Tensor], u: Tensor) -> Iterator[Visit]:
        """The layers from K down, and what comes out of each, given `start`'s draws."""
        for k, e in zip(range(len(self.layers), 0, -1), noise, strict=True):
            normal = self[k](x, u[:, k - 1])
            below = normal.draw(e)
            yield Visit(k, x, normal, below)
            x = below

    @torch.no_grad()
    def marginals(self, count: int, seed: int = 0) -> Tensor:
        """Joint draws of all states, [K+1, count, dim]: entry k is x_k, entry 0 the samples, in
        whitened coordinates.
        """
        visits = list(self.visits(*self.start(count, rng(seed, "samples"))))
        return torch.stack([visits[-1].below, *(visit.x for visit in reversed(visits))])

    @torch.no_grad()
    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Independent samples [count, dim]; the same for the same seed."""
        return self.whitened(None).out(self.marginals(count, seed)[0])

    def whitened(self, target: Target | None) -> Affine:
        """A target as the layers see it."""
        return Affine(target, self.centre, self.factor)
