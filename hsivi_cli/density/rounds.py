"""Rounds of training of a family on a bridge."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..config import InferConfig
from ..errors import HsiviError
from ..method.losses import (
    divergence_bound,
    fake_score_loss,
    kernel_stein_loss,
    lower_bound_loss,
    median_bandwidth,
    normal_log_density,
    pair_log_density,
    reverse_kl_loss,
    score_matching_loss,
)
from ..method.steps import (
    Shard,
    active_layers,
    ema_update,
    later_warmups,
    make_optimizer,
    rng,
    student_rate,
    update,
    warmup_rounds,
)
from .bridge import Bridge, level_of, noised, tempering_schedule
from .family import Family, mlp
from .gaussian import fit_gaussian
from .targets import Target

PLANE = 2  # coordinates up to which mixing samples cover the target, and it may have many modes


def resolved(config: InferConfig, target: Target) -> InferConfig:
    """The settings with each `auto` decided for a target."""
    plane = target.dim <= PLANE
    bridge = "diffusion" if target.levels else "geometric"
    bridge = bridge if config.bridge == "auto" else config.bridge
    whitening = "none" if plane or bridge == "diffusion" else "gaussian"
    objective = "lb" if plane else "reverse-kl"
    return replace(
        config,
        bridge=bridge,
        frame=whitening if config.frame == "auto" else config.frame,
        objective=objective if config.objective == "auto" else config.objective,
        sines=(6 if plane else 0) if config.sines is None else config.sines,
    )


SCALE_FACTOR = 10  # of the rate, for log_scale: it has units to go where weights have hundredths


@dataclass
class Networks:
    """What trains and what updates it; `fake_scores` [K] hold the gap to the bridge's score."""

    family: Family
    ema: Family
    fake_scores: nn.ModuleList
    bridge: Bridge
    optimizer: torch.optim.Optimizer
    fake_optimizer: torch.optim.Optimizer


def make_networks(
    config: InferConfig,
    target: Target,
    whitening: tuple[Tensor, Tensor] | None = None,
    device="cpu",
) -> Networks:
    """Networks whose weights are a function of the seed alone, and their optimizers.

    config     resolved
    whitening  centre and factor, where they are known already; else --frame says how to find them
    """
    dim = target.dim
    tempering = tempering_schedule(config.lambdas, config.layers, config.bridge)
    if config.bridge == "diffusion" and config.frame == "gaussian":
        raise HsiviError("--bridge diffusion goes with --frame none: it has coordinates of its own")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng(config.seed, "weights").initial_seed())
        family = Family(dim, config).to(device)
        fake_scores = nn.ModuleList(mlp(dim, dim, config) for _ in range(config.layers)).to(device)
    if config.frame == "gaussian":
        centre, factor = whitening or best_gaussian(config, target, True, device)
        family.centre.copy_(centre)
        family.factor.copy_(factor)
        target = family.whitened(target)
    return Networks(
        family,
        copy.deepcopy(family).requires_grad_(False),
        fake_scores,
        Bridge(target, tempering, config.bridge, config.base_scale),
        make_optimizer(
            "adam",
            [
                {"params": [p for layer in family.layers for p in layer.net.parameters()]},
                {"params": [layer.log_scale for layer in family.layers], "factor": SCALE_FACTOR},
            ],
            config.student_rate,
            config.student_beta1,
        ),
        make_optimizer("adam", fake_scores.parameters(), config.fake_rate, 0.9),
    )


def best_gaussian(
    config: InferConfig, target: Target, full: bool, device="cpu"
) -> tuple[Tensor, Tensor]:
    """Mean and factor of the target's nearest Gaussian; the same for the same seed."""
    start = 0.1 * torch.randn(target.dim, generator=rng(config.seed, "mode"))
    return fit_gaussian(
        target, start.to(device), full, rng(config.seed, "frame"), config.base_scale
    )


def has_fake_scores(config: InferConfig) -> bool:
    return config.objective in ("sm", "reverse-kl")


@dataclass(frozen=True)
class Pool:
    """A roll-out: x_k, u_k and the mean of x_{k-1}, by k. Each [N, ...]."""

    x: dict[int, Tensor]
    u: dict[int, Tensor]
    mean: dict[int, Tensor]


@torch.no_grad()
def roll_out(networks: Networks, config: InferConfig, round_: int, lowest: int) -> Pool:
    """Chains down to the lowest layer that trains; no mean is used more than about twice."""
    count = config.batch_size
    if has_fake_scores(config):
        count *= math.ceil((1 + config.fake_updates) / 2)
    if config.objective == "lb":
        count += config.mixing  # the rows after the batch's own are the z_j
    x, noise, u = networks.family.start(count, rng(config.seed, round_, "roll-out"))
    pool = Pool({}, {}, {})
    for visit in networks.family.visits(x, noise, u):
        pool.x[visit.k], pool.mean[visit.k] = visit.x, visit.mean
        pool.u[visit.k] = u[:, visit.k - 1]
        if visit.k == lowest:
            break
    return pool


def fake_eps(networks: Networks, config: InferConfig, x: Tensor, k: int, teacher_eps) -> Tensor:
    """The fake score of layer k's marginal, as an eps: its network, and what it begins at.

    Whitened that is the base's, which costs nothing; else the bridge's, teacher_eps(), as the
    gap is what vanishes in the end.
    """
    known = x / config.base_scale**2 if config.frame == "gaussian" else teacher_eps()
    return known + networks.fake_scores[k - 1](x)


def fake_loss(
    networks: Networks, config, pool: Pool, k: int, rows: Tensor, noise: Tensor, level: float
) -> Tensor:
    """Denoising score matching of layer k's marginal at a level, weighted by its variance (a
    constant).
    """
    bridge, own = networks.bridge, networks.bridge.tempering[k - 1]
    with torch.no_grad():
        mean, std = noised(pool.mean[k][rows], networks.family[k].log_scale.exp(), level / own)
        x = mean + std * noise
    f_eps = fake_eps(networks, config, x, k, lambda: -bridge.score(x, k - 1, level))
    weight = std.square().mean().clamp(max=1)
    return fake_score_loss(f_eps, noise / std, weight).mean() / x.shape[1]


def student_loss(
    networks: Networks, config: InferConfig, pool: Pool, k: int, noise: Tensor, level: float
) -> tuple[Tensor, Tensor]:
    """Layer k's loss at a level and its estimate of the divergence: Fisher's, KL's less a constant,
    or the squared kernel Stein discrepancy.
    """
    bridge, family = networks.bridge, networks.family
    size, dim = config.batch_size, family.dim
    rows = slice(None) if config.objective == "lb" else slice(size)  # lb's others are the z_j
    own = family.mean(k, pool.x[k][rows], pool.u[k][rows])
    means, std = noised(own, family[k].log_scale.exp(), level / bridge.tempering[k - 1])
    mean, others = means[:size], means[size:]
    x = mean + std * noise
    if config.objective == "lb":
        bound = lower_bound_loss(
            normal_log_density(x, mean, std),
            pair_log_density(x, others, std),
            bridge.log_prob(x, k - 1, level),
        )
        return bound.mean() / dim, bound.mean()
    layer_eps = noise / std
    with torch.set_grad_enabled(config.objective != "reverse-kl"):
        teacher_eps = -bridge.score(x, k - 1, level)
    if config.objective == "ksivi":
        bandwidth = config.kernel_width * median_bandwidth(x)
        losses = kernel_stein_loss(x, teacher_eps, layer_eps, bandwidth)
        return losses.mean() / dim, losses.mean()
    with torch.set_grad_enabled(config.objective != "reverse-kl"):
        f_eps = fake_eps(networks, config, x, k, lambda: teacher_eps)
    losses = (
        reverse_kl_loss(x, f_eps, teacher_eps, 1.0)
        if config.objective == "reverse-kl"
        else score_matching_loss(f_eps, teacher_eps, layer_eps, 1.0, config.a)
    )
    bound = divergence_bound(f_eps.detach(), teacher_eps.detach(), layer_eps.detach())
    return losses.mean() / dim, bound.mean()


def fresh_noise(pool: Pool, k: int, count: int, draw: torch.Generator) -> Tensor:
    """Standard normals like x_k, [count, dim]."""
    x = pool.x[k]
    return torch.randn(count, x.shape[1], generator=draw).to(x)


def train_fake_scores(
    networks: Networks, config: InferConfig, round_: int, pool: Pool, levels: dict[int, float]
) -> dict[str, float]:
    """The fake scores' updates on a roll-out; levels are those of the layers that train."""
    networks.fake_scores.requires_grad_(True)
    size, losses, norms = config.batch_size, [], []
    for i in range(config.fake_updates):
        draw = rng(config.seed, round_, "fake score", i)
        rows = torch.arange(i * size, (i + 1) * size) % len(pool.x[min(levels)])
        loss = sum(
            fake_loss(networks, config, pool, k, rows, fresh_noise(pool, k, size, draw), level)
            for k, level in levels.items()
        )
        loss.backward()
        losses.append(loss.item())
        norms.append(update(networks.fake_optimizer, config.clip, Shard()).item())
    networks.fake_scores.requires_grad_(False)
    return {"fake_loss": sum(losses) / len(losses), "fake_norm": max(norms)}


def play_round(networks: Networks, config: InferConfig, round_: int) -> dict[str, float]:
    """One round, in place. Returns its measurements by name."""
    step = round_ - warmup_rounds(config)
    layers = active_layers(config, config.layers, max(0, step))
    levels = {k: level_of(config, networks.bridge.tempering, k, step) for k in layers}
    measured, size = {}, config.batch_size
    if has_fake_scores(config):
        for warmup in later_warmups(config, max(0, step)):
            pool = roll_out(networks, config, warmup, min(layers))
            train_fake_scores(networks, config, warmup, pool, levels)
    pool = roll_out(networks, config, round_, min(layers))
    if has_fake_scores(config):
        measured = train_fake_scores(networks, config, round_, pool, levels)
    if step < 0:
        return measured
    for group in networks.optimizer.param_groups:
        group["lr"] = student_rate(config, step) * group.get("factor", 1)
    draw = rng(config.seed, round_, "student")
    found = {
        k: student_loss(networks, config, pool, k, fresh_noise(pool, k, size, draw), levels[k])
        for k in layers
    }
    loss = sum(loss for loss, _ in found.values())
    loss.backward()
    norm = update(networks.optimizer, config.clip, Shard()).item()
    ema_update(networks.ema.parameters(), networks.family.parameters(), config.ema, step)
    measured |= {"loss": loss.item(), "norm": norm}
    return measured | {f"divergence_{k}": value.item() for k, (_, value) in found.items()}
