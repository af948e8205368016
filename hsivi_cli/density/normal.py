"""The conditional normals of a layer, one a row."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..method.losses import normal_log_density


@dataclass(frozen=True)
class Normal:
    """N(mean, factor factor^T) of each row.

    mean, std  [N, dim]
    tilt       [N] or None: factor = [[std_0, 0], [tilt, std_1]] in the plane, so that a normal may
               lie along a curve; else it is diagonal
    """

    mean: Tensor
    std: Tensor
    tilt: Tensor | None = None

    def __getitem__(self, rows) -> Normal:
        tilt = None if self.tilt is None else self.tilt[rows]
        return Normal(self.mean[rows], self.std[rows], tilt)

    def draw(self, noise: Tensor) -> Tensor:
        """mean + factor noise [N, dim]"""
        x = self.mean + self.std * noise
        if self.tilt is None:
            return x
        return torch.stack([x[:, 0], x[:, 1] + self.tilt * noise[:, 0]], 1)

    def eps(self, noise: Tensor) -> Tensor:
        """Minus the score at draw(noise), factor^-T noise [N, dim]."""
        eps = noise / self.std
        if self.tilt is None:
            return eps
        return torch.stack([eps[:, 0] - self.tilt * eps[:, 1] / self.std[:, 0], eps[:, 1]], 1)

    def at(self, ratio: float | Tensor) -> Normal:
        """The normals where x becomes sqrt(ratio) x + sqrt(1 - ratio) noise.

        ratio  one for all, or one a row [N, 1]
        """
        ratio = torch.as_tensor(ratio).to(self.mean).clamp(max=1)
        if (ratio == 1).all():
            return self
        mean, var = ratio.sqrt() * self.mean, ratio * self.std.square() + (1 - ratio)
        if self.tilt is None:
            return Normal(mean, var.sqrt())
        ratio = ratio.expand(len(mean), 1)[:, 0]
        first = var[:, 0].sqrt()
        tilt = ratio * self.std[:, 0] * self.tilt / first
        # the rest of ratio tilt^2, without a difference of what may be equal
        rest = ratio * (1 - ratio) * (self.tilt / first).square()
        return Normal(mean, torch.stack([first, (var[:, 1] + rest).sqrt()], 1), tilt)

    def cov(self) -> Tensor:
        """factor factor^T [N, dim, dim]"""
        if self.tilt is None:
            return torch.diag_embed(self.std.square())
        first, second = self.std.unbind(1)
        off = first * self.tilt
        last = self.tilt.square() + second.square()
        return torch.stack([first.square(), off, off, last], 1).view(-1, 2, 2)

    def precision(self) -> Tensor:
        """The inverse of cov [N, dim, dim]"""
        own = self.std.square().reciprocal()
        if self.tilt is None:
            return torch.diag_embed(own)
        lean = self.tilt / self.std[:, 0]  # the second noise is (x_1 - lean x_0) / std_1
        first, off = own[:, 0] + lean.square() * own[:, 1], -lean * own[:, 1]
        return torch.stack([first, off, off, own[:, 1]], 1).view(-1, 2, 2)

    def log_prob(self, x: Tensor) -> Tensor:
        """log density of each row at its own point x [N, dim]."""
        if self.tilt is not None:
            lean = self.tilt * (x[:, 0] - self.mean[:, 0]) / self.std[:, 0]
            x = torch.stack([x[:, 0], x[:, 1] - lean], 1)
        return normal_log_density(x, self.mean, self.std)

    def pairs(self, x: Tensor) -> Tensor:
        """log density of every row at every point x [B, dim], in B N numbers of memory whatever dim
        is. [B, N]

        -2 log density = x P x - 2 x P mean + mean P mean + constants, P = (factor factor^T)^-1
        """
        middle = self.mean.mean(0).detach()  # about it, the squares that cancel are small
        x, mean, precision = x - middle, self.mean - middle, self.std.square().reciprocal()
        squares, pull = x.square(), mean * precision
        if self.tilt is not None:
            lean = self.tilt / self.std[:, 0]  # the second noise is (x_1 - lean x_0) / std_1
            cross = -lean * precision[:, 1]
            first = precision[:, 0] + lean.square() * precision[:, 1]
            pull = torch.stack(
                [first * mean[:, 0] + cross * mean[:, 1], cross * mean[:, 0] + pull[:, 1]], 1
            )
            precision = torch.stack([first, precision[:, 1], 2 * cross], 1)
            squares = torch.cat([squares, x.prod(1, keepdim=True)], 1)
        size = squares @ precision.T - 2 * x @ pull.T + (mean * pull).sum(1)
        return -(size + (2 * self.std.log() + math.log(2 * math.pi)).sum(1)) / 2

    def mixture_log_prob(self, x: Tensor, weight: Tensor) -> Tensor:
        """log density of the mixture of the rows at points x [B]; weights [N] or [B, N] of mean
        1.
        """
        return (self.pairs(x) + weight.log()).logsumexp(1) - math.log(weight.shape[-1])

    def mixture_score(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Score at points x [B, dim] of the mixture of the rows, weights [N] or [B, N]; and each
        row's share of the density there [B, N], without gradient.
        """
        middle = self.mean.mean(0)
        near = (self.pairs(x) + weight.log()).softmax(1)
        precision = self.precision()
        pull = (precision @ (self.mean - middle)[:, :, None])[:, :, 0]
        sums = near @ torch.cat([pull, precision.flatten(1)], 1)
        pull, precision = sums.split([x.shape[1], x.shape[1] ** 2], 1)
        turned = precision.view(-1, *[x.shape[1]] * 2) @ (x - middle)[:, :, None]
        return pull - turned[:, :, 0], near.detach()
