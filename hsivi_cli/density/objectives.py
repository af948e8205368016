"""What layers and fake scores are judged by, on a roll-out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import InferConfig
from ..method.losses import (
    divergence_bound,
    fake_score_loss,
    kernel_stein_loss,
    median_bandwidth,
    reverse_kl_loss,
    score_matching_loss,
)
from ..method.steps import rng
from .bridge import LOWEST
from .even import even_normals
from .family import Family
from .networks import Networks, by_mixture, has_fake_scores
from .normal import Normal
from .smoothed import PLANE


@dataclass(frozen=True)
class Pool:
    """A roll-out: x_k, u_k and the normals of x_{k-1}, by k. Each [N, ...].

    weight  [N]  of each row: how likely its x_K is under the base, over how likely it was drawn
    """

    x: dict[int, Tensor]
    u: dict[int, Tensor]
    normal: dict[int, Normal]
    weight: Tensor


@torch.no_grad()
def roll_out(family: Family, config: InferConfig, round_: int, lowest: int) -> Pool:
    """Chains down to the lowest layer that trains; no normal is used more than about twice."""
    count = config.batch_size
    if has_fake_scores(config):
        count *= math.ceil((1 + config.fake_updates) / 2)
    elif config.objective != "ksivi":
        count += config.mixing  # the rows after the batch's own are the z_j
    draw = rng(config.seed, round_, "roll-out")
    x, noise, u = family.start(count, draw)
    weight = torch.ones(count).to(x)
    if family.dim <= PLANE and config.objective != "ksivi":  # whose pairs weights would thin out
        parts = (config.batch_size, count - config.batch_size)
        base = torch.cat([wide_normals(part, family.dim, draw) for part in parts]).to(x)
        x, weight = config.base_scale * base, wide_weight(base)
    pool = Pool({}, {}, {}, weight)
    for visit in family.visits(x, noise, u):
        pool.x[visit.k], pool.u[visit.k] = visit.x, u[:, visit.k - 1]
        pool.normal[visit.k] = visit.normal
        if visit.k == lowest:
            break
    return pool


WIDE = 2.0  # the sd of every other x_K in the plane: a layer's tails are seldom seen otherwise


def wide_normals(count: int, dim: int, draw: torch.Generator) -> Tensor:
    """Even normals [count, dim], every other row of sd WIDE."""
    x = torch.empty(count, dim)
    x[::2] = even_normals(len(x[::2]), dim, draw)
    x[1::2] = WIDE * even_normals(len(x[1::2]), dim, draw)
    return x


def wide_weight(x: Tensor) -> Tensor:
    """N(x; 0, I) / (N(x; 0, I) / 2 + N(x; 0, WIDE^2 I) / 2) of each row [N]: at most 2."""
    ratio = x.square().sum(1) * (1 - WIDE**-2) / 2 - x.shape[1] * math.log(WIDE)
    return 2 * torch.sigmoid(-ratio)


ABOVE = 0.5  # of the rows are judged at a higher level than the layer's own
SCORED_ABOVE, PARTS = 0.75, 4  # by a mixture's score: more of them, at so many levels
RANGE = (0.2, 10.0)  # of sigma / sqrt(alpha_bar) at these


def levels_of_rows(networks: Networks, config: InferConfig, k: int, count: int, draw) -> Tensor:
    """alpha_bar at which each row of layer k is judged [count, 1].

    Over the diffusion bridge it is the layer's own, tempering[k-1], for a part of the rows. The
    others are judged above it: where modes overlap, the mass that each should hold is seen; once
    they lie apart, no gradient of theirs knows it. There sigma is uniform, one for all by the lower
    bound; where the score is a mixture's, sigma / sqrt(alpha_bar) is even in its logarithm.
    """
    own = networks.bridge.tempering[k - 1]
    levels = torch.full((count, 1), own)
    if config.bridge != "diffusion" or config.levels == "own":
        return levels
    lowest = max(math.sqrt(1 - own), networks.bridge.lowest)
    if by_mixture(config):
        ends = [math.log(s) for s in (max(RANGE[0], math.tan(math.asin(lowest))), RANGE[1])]
        place = (torch.arange(PARTS) + torch.rand(PARTS, generator=draw)) / PARTS
        sigma = (ends[0] + place * (ends[1] - ends[0])).exp().atan().sin()
        sigma = sigma.repeat_interleave(round(SCORED_ABOVE * count / PARTS))[:, None]
    else:
        drawn = 1 if config.objective == "lb" else round(ABOVE * count)
        place = torch.rand(drawn, 1, generator=draw)
        sigma = lowest + place * (math.sqrt(1 - LOWEST) - lowest)
        sigma = sigma.expand(round(ABOVE * count), 1)
    levels[count - len(sigma) :] = 1 - sigma.square()
    return levels


def unit_of(config: InferConfig, normal: Normal, ratio: Tensor) -> Tensor:
    """The typical sd [N, 1] of a layer's normals after noise: scores times it are of size 1 or so.
    1 over the geometric bridge, where all rows are alike.

    ratio  alpha_bar over that of the layer's own level
    """
    if config.bridge != "diffusion":
        return torch.ones_like(ratio)
    var = (2 * normal.std.detach().log()).mean().exp()
    return (ratio * var + 1 - ratio).clamp(max=1).sqrt()


def fake_eps(
    networks: Networks, config: InferConfig, x, k: int, level, unit, teacher_eps
) -> Tensor:
    """The fake score of layer k's marginal at the levels of the rows, as an eps: its network, and
    what it begins at.

    Whitened that is the base's, which costs nothing; else the bridge's, teacher_eps(), as the
    gap is what vanishes in the end.
    """
    known = x / config.base_scale**2 if config.frame == "gaussian" else teacher_eps()
    inputs = torch.cat([x, (1 - level).sqrt()], 1) if config.bridge == "diffusion" else x
    return known + networks.fake_scores[k - 1](inputs) / unit


def fake_loss(
    networks: Networks,
    config: InferConfig,
    pool: Pool,
    k: int,
    rows: Tensor,
    draw: torch.Generator,
) -> Tensor:
    """Denoising score matching of layer k's marginal at its rows' levels, in units of the typical
    sd there, which is a function of the level alone.
    """
    bridge, family, count = networks.bridge, networks.family, len(rows)
    with torch.no_grad():
        noise = torch.randn(count, family.dim, generator=draw).to(pool.x[k])
        level = levels_of_rows(networks, config, k, count, draw).to(noise)
        ratio = level / bridge.tempering[k - 1]
        unit = unit_of(config, pool.normal[k], ratio)
        normal = pool.normal[k][rows].at(ratio)
        x = normal.draw(noise)
    f_eps = fake_eps(networks, config, x, k, level, unit, lambda: -bridge.score(x, k - 1, level))
    weight = unit[:, 0].square()
    if config.bridge != "diffusion":
        weight = normal.std.square().mean().clamp(max=1)
    losses = fake_score_loss(f_eps, normal.eps(noise), pool.weight[rows] * weight)
    return losses.mean() / family.dim


def mixtures(networks: Networks, pool: Pool, k: int, level: Tensor, own: float) -> Iterator[tuple]:
    """Layer k's marginal by all normals of a roll-out, held, at each level of the first rows, from
    the noisiest to the layer's own: these rows, the level, the normals there, and their weights
    for each of the rows; the one that a row came from counts `own`.
    """
    for one in level.unique():
        rows = (level[:, 0] == one).nonzero()[:, 0]
        share = pool.weight.expand(len(rows), -1).clone()
        share[torch.arange(len(rows)), rows] *= own
        yield rows, one, pool.normal[k].at(one / networks.bridge.tempering[k - 1]), share


def lower_bound_losses(
    networks: Networks, pool: Pool, k: int, noise: Tensor, level: Tensor
) -> list[Tensor]:
    """Weighted log q - log p of layer k's draws at each level of the rows. q is held, so that the
    gradient is the path's alone: its noise vanishes as q reaches p [Roeder et al. 2017].

    With N normals, the one that a draw came from among them, the mean of log q is too high by
    R / 2N, R = E q(x | z) / q(x), without it too low by as much. So it counts half, or sparse parts
    of q would lose mass.
    """
    bridge, found = networks.bridge, []
    layer = networks.family[k](pool.x[k][: len(noise)], pool.u[k][: len(noise)])
    for rows, one, normals, share in mixtures(networks, pool, k, level, 0.5):
        x = layer[rows].at(one / bridge.tempering[k - 1]).draw(noise[rows])
        q = normals.mixture_log_prob(x, share)
        found.append(pool.weight[rows] * (q - bridge.log_prob(x, k - 1, one)))
    return found


ALONE = 0.1  # how much a falls for a draw that its own normal alone reaches
FARTHEST = 10.0  # gap of scores, in local sds, from which on it pulls with one force


def mixture_losses(
    networks: Networks, config: InferConfig, pool: Pool, k: int, noise: Tensor, level: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Score matching of layer k's draws at each level of the rows, and its estimate of the
    divergence; with q's score from all normals of the roll-out, held.

    Scores are multiplied by a factor of the covariance of the normals about x (diffusion score
    matching [Barp et al. 2019]): so gaps are of one size in a funnel's neck and in its mouth.

    N normals err by V = E |q's score - theirs|^2 = E q(x | z) |layer_eps - q's|^2 / N q(x). Where
    the one that a draw came from counts w, the loss is wrong by (w - a) V, which pulls tails in or
    throws them out: so it counts a. A draw weighs the less the more its own normal is alone there,
    as q's score is then that one's, whatever q is.
    """
    bridge, found, bounds = networks.bridge, [], []
    layer = networks.family[k](pool.x[k][: len(noise)], pool.u[k][: len(noise)])
    for rows, one, normals, share in mixtures(networks, pool, k, level, max(config.a, 0.5)):
        normal = layer[rows].at(one / bridge.tempering[k - 1])
        x, layer_eps = normal.draw(noise[rows]), normal.eps(noise[rows])
        teacher_eps = -bridge.score(x, k - 1, one)
        score, near = normals.mixture_score(x, share)
        alone = near[torch.arange(len(rows)), rows]
        cov = torch.einsum("bn,nij->bij", near, normals.cov())
        factor = torch.linalg.cholesky_ex(cov).L  # nan where there is none
        f_eps, teacher_eps, layer_eps = (
            (eps[:, None] @ factor)[:, 0] for eps in (-score, teacher_eps, layer_eps)
        )
        size = (f_eps - teacher_eps).detach().norm(dim=1)
        weight = pool.weight[rows] * (FARTHEST / size).clamp(max=1) * (1 - alone)
        a = config.a - ALONE * alone[:, None]
        found.append(score_matching_loss(f_eps, teacher_eps, layer_eps, weight, a))
        bound = divergence_bound(f_eps.detach(), teacher_eps.detach(), layer_eps.detach())
        bounds.append(weight * bound)
    return found, bounds


def student_loss(
    networks: Networks, config: InferConfig, pool: Pool, k: int, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Layer k's loss at its rows' levels and its estimate of the divergence: Fisher's, KL's less a
    constant, or the squared kernel Stein discrepancy.
    """
    bridge, family, size = networks.bridge, networks.family, config.batch_size
    dim, held = family.dim, config.objective == "reverse-kl"
    noise = torch.randn(size, dim, generator=draw).to(pool.x[k])
    level = levels_of_rows(networks, config, k, size, draw).to(noise)
    if config.objective == "lb":
        losses = lower_bound_losses(networks, pool, k, noise, level)
        return torch.cat(losses).mean() / dim, losses[-1].mean()
    if by_mixture(config):
        losses, bounds = mixture_losses(networks, config, pool, k, noise, level)
        return torch.cat(losses).mean() / dim, bounds[-1].mean()
    ratio = level / bridge.tempering[k - 1]
    normal = family[k](pool.x[k][:size], pool.u[k][:size])
    unit = unit_of(config, normal, ratio)
    normal = normal.at(ratio)
    x, layer_eps = normal.draw(noise), normal.eps(noise)
    with torch.set_grad_enabled(not held):
        teacher_eps = -bridge.score(x, k - 1, level)
    if config.objective == "ksivi":
        bandwidth = config.kernel_width * median_bandwidth(x)
        losses = kernel_stein_loss(x, teacher_eps, layer_eps, bandwidth)
        return losses.mean() / dim, losses.mean()
    with torch.set_grad_enabled(not held):
        f_eps = fake_eps(networks, config, x, k, level, unit, lambda: teacher_eps)
    unit, weight = unit[:, 0], pool.weight[:size]
    losses = (
        reverse_kl_loss(x, f_eps, teacher_eps, unit)
        if held
        else score_matching_loss(f_eps, teacher_eps, layer_eps, unit.square(), config.a)
    )
    bound = divergence_bound(f_eps.detach(), teacher_eps.detach(), layer_eps.detach())
    return (weight * losses).mean() / dim, (weight * bound).mean()
