"""Hierarchical semi-implicit inference of a density: its layers, bridge and rounds of training.

    x_K ~ N(0, base_scale^2 I),    x_{k-1} = keep x_k + net_k(x_k, u_k) + std_k noise,    k = K..1
    a sample = centre + factor x_0

keep^2 = 1 - (start_scale / base_scale)^2, so that before training every marginal is the base. The
*whitening* (centre, factor) is by the target's best Gaussian (gaussian.py) with --frame gaussian,
where training begins at it and learns what it lacks; else it is the identity.

The walk is chain.py's and the losses are objective.py's, where sigma = 1 makes an eps minus a
score; u_k are extra normal inputs (none unless asked for), handed to the walk as its labels. Each
marginal is matched to a bridge p_{k-1} between the base and the target p_0; over the diffusion
bridge it is judged with noise, of which less and less is added (`level_of`).

A *round* is a roll-out, the fake scores' updates (where the objective has them) and a student
update, as in distill.py; everything random is a function of (seed, round, purpose).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..config import InferConfig
from ..method.chain import Chain, walk
from ..method.steps import rng
from .gaussian import Affine
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


class Layer(nn.Module):
    """q(x_{k-1} | x_k, u_k): a normal, its mean keep x_k + net(x_k, u_k), its sd per coordinate
    free.
    """

    def __init__(self, dim: int, config: InferConfig):
        super().__init__()
        self.net = mlp(dim + config.noise_dim, dim, config)
        self.log_scale = nn.Parameter(torch.full((dim,), math.log(config.start_scale)))

    def shift(self, x: Tensor, u: Tensor) -> Tensor:
        return self.net(torch.cat([x, u], 1))


class Family(nn.Module):
    """The K layers, k = 1 the one that ends at the samples."""

    def __init__(self, dim: int, config: InferConfig):
        super().__init__()
        self.dim, self.noise_dim, self.base_scale = dim, config.noise_dim, config.base_scale
        self.keep = math.sqrt(max(0.0, 1 - (config.start_scale / config.base_scale) ** 2))
        self.layers = nn.ModuleList(Layer(dim, config) for _ in range(config.layers))
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("factor", torch.eye(dim))

    def __getitem__(self, k: int) -> Layer:
        return self.layers[k - 1]

    @property
    def log_scale(self) -> Tensor:
        """[K, dim]"""
        return torch.stack([layer.log_scale for layer in self.layers])

    def start(self, count: int, draw: torch.Generator) -> tuple[Tensor, list[Tensor], Tensor]:
        """x_K [count, dim], the noises of all layers from K down, and u [count, K, noise_dim]."""
        layers = len(self.layers)
        x = self.base_scale * torch.randn(count, self.dim, generator=draw)
        noise = [torch.randn(count, self.dim, generator=draw) for _ in range(layers)]
        u = torch.randn(count, layers, self.noise_dim, generator=draw)
        return x.to(self.centre), [n.to(self.centre) for n in noise], u.to(self.centre)

    def mean(self, k: int, x: Tensor, u: Tensor) -> Tensor:
        """The mean of x_{k-1} [B, dim], given x_k and u_k."""
        return self.keep * x + self[k].shift(x, u)

    def visits(self, x: Tensor, noise: Sequence[Tensor], u: Tensor):
        """chain.walk over these layers."""

        def network(x, time, labels, alpha_bar):
            k = int(time[0])
            return self[k].shift(x, labels[:, k - 1])

        return walk(network, free_chain(len(self.layers), self.keep), x, noise, self.log_scale, u)

    @torch.no_grad()
    def marginals(self, count: int, seed: int = 0) -> Tensor:
        """Joint draws of all states, [K+1, count, dim]: entry k is x_k, entry 0 the samples, in
        whitened coordinates.
        """
        x, noise, u = self.start(count, rng(seed, "samples"))
        visits = list(self.visits(x, noise, u))
        last = visits[-1].mean + self[1].log_scale.exp() * noise[-1]
        return torch.stack([last, *(visit.x for visit in reversed(visits))])

    @torch.no_grad()
    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Independent samples [count, dim]; the same for the same seed."""
        return self.whitened(None).out(self.marginals(count, seed)[0])

    def whitened(self, target: Target | None) -> Affine:
        """A target as the layers see it."""
        return Affine(target, self.centre, self.factor)


def free_chain(count: int, keep: float) -> Chain:
    """The chain without a schedule: x_{k-1} = keep x_k + eps_k + exp(log_scale_k) noise."""
    ones = torch.ones(count + 1, dtype=torch.float64)
    time = torch.arange(count + 1, dtype=torch.float64)
    return Chain(time, alpha_bar=ones, cx=keep * ones, ce=torch.eye(count + 1).double(), s0=ones)
