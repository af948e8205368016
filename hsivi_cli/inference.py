"""Hierarchical semi-implicit inference of a density: its layers, bridge and rounds of training.

    x_K ~ N(0, base_scale^2 I),    x_{k-1} = keep x_k + net_k(x_k, u_k) + std_k noise,    k = K..1
    a sample = centre + factor x_0

keep^2 = 1 - (start_scale / base_scale)^2, so that before training every marginal is the base. The
*frame* (centre, factor) is the target's best Gaussian (gaussian.py) with --frame gaussian, where
training begins at it and learns what it lacks; else it is the identity.

The walk is chain.py's and the losses are objective.py's, where sigma = 1 makes an eps minus a
score; u_k are extra normal inputs (none unless asked for), handed to the walk as its labels. Each
marginal is matched to a bridge p_{k-1} between the base and the target p_0; over the diffusion
bridge it is judged with noise, of which less and less is added (`level_of`).

A *round* is a roll-out, the fake scores' updates (where the objective has them) and a student
update, as in distill.py; everything random is a function of (seed, round, purpose).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from .chain import Chain, walk
from .config import HsiviError, InferConfig
from .distill import (
    Share,
    active_layers,
    ema_update,
    make_optimizer,
    rng,
    student_rate,
    update,
    warmup_rounds,
)
from .gaussian import Affine, fit_gaussian
from .objective import (
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

# ---- the family ----------------------------------------------------------------------------------


PLANE = 2  # coordinates up to which mixing samples cover the target, and it may have many modes


def resolved(config: InferConfig, target) -> InferConfig:
    """The settings with each `auto` decided for a target."""
    plane, levels = target.dim <= PLANE, getattr(target, "levels", False)
    bridge = "diffusion" if levels else "geometric"
    bridge = bridge if config.bridge == "auto" else config.bridge
    frame = "none" if plane or bridge == "diffusion" else "gaussian"
    objective = "lb" if plane else "reverse-kl"
    return replace(
        config,
        bridge=bridge,
        frame=frame if config.frame == "auto" else config.frame,
        objective=objective if config.objective == "auto" else config.objective,
        sines=(6 if plane else 0) if config.sines is None else config.sines,
    )


class Sines(nn.Module):
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
    return nn.Sequential(Sines(config.sines, config.base_scale), *blocks, last)


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
        """Joint draws of all states, [K+1, count, dim]: entry k is x_k, entry 0 the samples in
        their frame.
        """
        x, noise, u = self.start(count, rng(seed, "samples"))
        visits = list(self.visits(x, noise, u))
        last = visits[-1].mean + self[1].log_scale.exp() * noise[-1]
        return torch.stack([last, *(visit.x for visit in reversed(visits))])

    @torch.no_grad()
    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Independent samples [count, dim]; the same for the same seed."""
        return self.framed(None).out(self.marginals(count, seed)[0])

    def framed(self, target) -> Affine:
        """A target as the layers see it."""
        return Affine(target, self.centre, self.factor)


def free_chain(count: int, keep: float) -> Chain:
    """The chain without a schedule: x_{k-1} = keep x_k + eps_k + exp(log_scale_k) noise."""
    ones = torch.ones(count + 1, dtype=torch.float64)
    time = torch.arange(count + 1, dtype=torch.float64)
    return Chain(time, alpha_bar=ones, cx=keep * ones, ce=torch.eye(count + 1).double(), s0=ones)


# ---- the bridge ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bridge:
    """The densities p_0 (the target) to p_K that the marginals are matched to.

    geometric  p_base^(1 - lambda_k) p^lambda_k
    diffusion  the target at the VP level alpha_bar = lambda_k, where it knows its levels

    target   has dim, log_prob and score
    lambdas  [K+1]  from 1 down to 0
    """

    target: object
    lambdas: tuple[float, ...]
    kind: str
    base_scale: float

    def log_prob(self, x: Tensor, k: int, share: float | None = None) -> Tensor:
        """log p_k up to a constant [B]; share is a lambda in place of layer k's own."""
        share = self.lambdas[k] if share is None else share
        if share == 1:
            return self.target.log_prob(x)
        if self.kind == "diffusion":
            return self.target.log_prob(x, x.new_full((len(x),), share))
        base = normal_log_density(x, torch.zeros_like(x), torch.full_like(x, self.base_scale))
        return (1 - share) * base + (share * self.target.log_prob(x) if share else 0)

    def score(self, x: Tensor, k: int, share: float | None = None) -> Tensor:
        """grad_x log p_k [B, dim]. Refuses a target whose gradient is not finite."""
        share = self.lambdas[k] if share is None else share
        if self.kind == "diffusion" and share < 1:
            return check_score(self.target.score(x, x.new_full((len(x),), share)), x)
        score = share * check_score(self.target.score(x), x) if share else 0
        return score if share == 1 else score - (1 - share) / self.base_scale**2 * x


FAR = 1e6


def check_score(score: Tensor, x: Tensor) -> Tensor:
    """The score; says where it is not finite. Points that a training threw far away are left to the
    loss: they are not the target's fault.
    """
    bad = ~torch.isfinite(score) & (x.abs() < FAR).all(1, keepdim=True)
    if not bad.any():
        return score
    row, coordinate = bad.nonzero()[0].tolist()
    raise HsiviError(
        f"the target's gradient is {score[row, coordinate].item():g} in coordinate {coordinate} at "
        f"x = ({point_of(x[row])}): its log density must be smooth everywhere the samples may go"
    )


def check_density(density: Tensor, x: Tensor) -> None:
    """Refuse a log density that is not finite at one of the points x."""
    if (bad := ~torch.isfinite(density) & (x[: len(density)].abs() < FAR).all(1)).any():
        row = bad.nonzero()[0].item()
        raise HsiviError(
            f"the target's log density is {density[row].item():g} at x = ({point_of(x[row])}): it "
            "must be finite everywhere the samples may go"
        )


def point_of(x: Tensor) -> str:
    """A point [dim] in words, its first eight coordinates."""
    return ", ".join([f"{value:.4g}" for value in x[:8].tolist()] + ["..."] * (len(x) > 8))


def parse_lambdas(text: str, count: int, kind: str) -> tuple[float, ...]:
    """--lambdas: "auto", or K+1 numbers of layers 0 to K, from 1 down to 0."""
    if count < 1:
        raise HsiviError(f"--layers {count} must be at least 1")
    if text == "auto":  # at a VP level, equal steps of sigma; else equal steps of the power
        power = 2 if kind == "diffusion" else 1
        return tuple(1 - (k / count) ** power for k in range(count + 1))
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        raise HsiviError(
            f"--lambdas {text!r} is neither auto nor numbers such as 1,0.5,0"
        ) from None
    falling = all(a > b for a, b in pairwise(numbers))
    if len(numbers) != count + 1 or not falling or (numbers[0], numbers[-1]) != (1, 0):
        raise HsiviError(
            f"--lambdas {text} must be {count + 1} numbers for {count} layers, falling from 1 (the "
            "target) to 0 (the base)"
        )
    return numbers


FALL, SM_FALL = 0.5, 0.7  # of the steps, over which a layer's level falls to its own
LOWEST = 1e-3  # alpha_bar of the highest level: at 0 there is nothing of the layer to judge


def level_of(config: InferConfig, lambdas: Sequence[float], k: int, step: int) -> float:
    """alpha_bar at which layer k is judged at a step.

    Its own is lambdas[k-1]. With --levels falling over the diffusion bridge sigma begins at the
    layer above's and falls to its own in equal steps: modes share their mass out while they
    overlap; once they lie apart, no gradient of a reverse KL knows how much each should hold.
    Score matching loses modes where it begins near its own level: there sigma begins at the base's.
    """
    if config.levels == "own" or config.bridge != "diffusion":
        return lambdas[k - 1]
    fall, top = (SM_FALL, config.layers) if config.objective == "sm" else (FALL, k)
    own, above = (math.sqrt(1 - lambdas[i]) for i in (k - 1, top))
    part = config.steps / (config.layers if config.order == "sequential" else 1)
    left = max(0.0, 1 - max(0, step) % part / part / fall)
    return max(LOWEST, 1 - (own + left * (above - own)) ** 2) if left else lambdas[k - 1]


def noised(mean: Tensor, std: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The normal N(mean, std^2) where x becomes sqrt(share) x + sqrt(1 - share) noise."""
    if share == 1:
        return mean, std
    return math.sqrt(share) * mean, (share * std.square() + 1 - share).sqrt()


SCALE_FACTOR = 10  # of the rate, for log_scale: it has units to go where weights have hundredths


# ---- training ------------------------------------------------------------------------------------


@dataclass
class Players:
    """What trains and what updates it; `fake_scores` [K] hold the gap to the bridge's score."""

    family: Family
    ema: Family
    fake_scores: nn.ModuleList
    bridge: Bridge
    optimizer: torch.optim.Optimizer
    fake_optimizer: torch.optim.Optimizer


def make_players(
    config: InferConfig, target, frame: tuple[Tensor, Tensor] | None = None, device="cpu"
) -> Players:
    """Networks whose weights are a function of the seed alone, and their optimizers.

    config  resolved
    frame  centre and factor, where they are known already; else --frame says how to find them
    """
    dim, lambdas = target.dim, parse_lambdas(config.lambdas, config.layers, config.bridge)
    if config.bridge == "diffusion" and config.frame == "gaussian":
        raise HsiviError("--bridge diffusion goes with --frame none: it has coordinates of its own")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng(config.seed, "weights").initial_seed())
        family = Family(dim, config).to(device)
        fake_scores = nn.ModuleList(mlp(dim, dim, config) for _ in range(config.layers)).to(device)
    if config.frame == "gaussian":
        frame = frame or best_gaussian(config, target, True, device)
        family.centre.copy_(frame[0])
        family.factor.copy_(frame[1])
        target = family.framed(target)
    return Players(
        family,
        copy.deepcopy(family).requires_grad_(False),
        fake_scores,
        Bridge(target, lambdas, config.bridge, config.base_scale),
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


def best_gaussian(config: InferConfig, target, full: bool, device="cpu") -> tuple[Tensor, Tensor]:
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
def roll_out(players: Players, config: InferConfig, round_: int, lowest: int) -> Pool:
    """Chains down to the lowest layer that trains; no mean is used more than about twice."""
    count = config.batch_size
    if has_fake_scores(config):
        count *= math.ceil((1 + config.fake_updates) / 2)
    if config.objective == "lb":
        count += config.mixing  # the rows after the batch's own are the z_j
    x, noise, u = players.family.start(count, rng(config.seed, round_, "roll-out"))
    pool = Pool({}, {}, {})
    for visit in players.family.visits(x, noise, u):
        pool.x[visit.k], pool.mean[visit.k] = visit.x, visit.mean
        pool.u[visit.k] = u[:, visit.k - 1]
        if visit.k == lowest:
            break
    return pool


def fake_eps(players: Players, config: InferConfig, x: Tensor, k: int, teacher_eps) -> Tensor:
    """The fake score of layer k's marginal, as an eps: its network, and what it begins at.

    Within a frame that is the base's, which costs nothing; else the bridge's, teacher_eps(), as the
    gap is what vanishes in the end.
    """
    known = x / config.base_scale**2 if config.frame == "gaussian" else teacher_eps()
    return known + players.fake_scores[k - 1](x)


def fake_loss(
    players: Players, config, pool: Pool, k: int, rows: Tensor, noise: Tensor, level: float
) -> Tensor:
    """Denoising score matching of layer k's marginal at a level, weighted by its variance (a
    constant).
    """
    bridge, own = players.bridge, players.bridge.lambdas[k - 1]
    with torch.no_grad():
        mean, std = noised(pool.mean[k][rows], players.family[k].log_scale.exp(), level / own)
        x = mean + std * noise
    f_eps = fake_eps(players, config, x, k, lambda: -bridge.score(x, k - 1, level))
    weight = std.square().mean().clamp(max=1)
    return fake_score_loss(f_eps, noise / std, weight).mean() / x.shape[1]


def student_loss(
    players: Players, config: InferConfig, pool: Pool, k: int, noise: Tensor, level: float
) -> tuple[Tensor, Tensor]:
    """Layer k's loss at a level and its estimate of the divergence: Fisher's, KL's less a constant,
    or the squared kernel Stein discrepancy.
    """
    bridge, family = players.bridge, players.family
    size, dim = config.batch_size, family.dim
    rows = slice(None) if config.objective == "lb" else slice(size)  # lb's others are the z_j
    own = family.mean(k, pool.x[k][rows], pool.u[k][rows])
    means, std = noised(own, family[k].log_scale.exp(), level / bridge.lambdas[k - 1])
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
        f_eps = fake_eps(players, config, x, k, lambda: teacher_eps)
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


def play_round(players: Players, config: InferConfig, round_: int) -> dict[str, float]:
    """One round, in place. Returns its measurements by name."""
    step = round_ - warmup_rounds(config)
    layers = active_layers(config, config.nfe, max(0, step))
    pool = roll_out(players, config, round_, min(layers))
    levels = {k: level_of(config, players.bridge.lambdas, k, step) for k in layers}
    measured, size = {}, config.batch_size
    if has_fake_scores(config):
        players.fake_scores.requires_grad_(True)
        losses, norms = [], []
        for i in range(config.fake_updates):
            draw = rng(config.seed, round_, "fake score", i)
            rows = torch.arange(i * size, (i + 1) * size) % len(pool.x[layers[-1]])
            loss = sum(
                fake_loss(
                    players, config, pool, k, rows, fresh_noise(pool, k, size, draw), levels[k]
                )
                for k in layers
            )
            loss.backward()
            losses.append(loss.item())
            norms.append(update(players.fake_optimizer, config.clip, Share()))
        players.fake_scores.requires_grad_(False)
        measured = {"fake_loss": sum(losses) / len(losses), "fake_norm": max(norms)}
    if step < 0:
        return measured
    for group in players.optimizer.param_groups:
        group["lr"] = student_rate(config, step) * group.get("factor", 1)
    draw = rng(config.seed, round_, "student")
    found = {
        k: student_loss(players, config, pool, k, fresh_noise(pool, k, size, draw), levels[k])
        for k in layers
    }
    loss = sum(loss for loss, _ in found.values())
    loss.backward()
    norm = update(players.optimizer, config.clip, Share())
    ema_update(players.ema.parameters(), players.family.parameters(), config.ema, step)
    measured |= {"loss": loss.item(), "norm": norm}
    return measured | {f"divergence_{k}": value.item() for k, (_, value) in found.items()}


PARTS = 20


@torch.no_grad()
def lower_bound(family: Family, target, count: int, mixing: int, seed: int = 0) -> dict:
    """What the samples weigh against the target, with q's density from J z, fresh ones for each of
    PARTS parts of the samples, by which the error is known.

    target  in the family's frame

    lower_bound     of log of the target's constant: mean of log p(x) - log q(x), standard error
                    beside. Where p is normalised, minus this is at least KL(q || p)
    importance_ess  effective sample size of the weights p / q, out of `count`
    """
    parts = min(PARTS, count // 2)
    x, noise, u = family.start(parts * mixing + count, rng(seed, "bound"))
    last = list(family.visits(x, noise, u))[-1]
    std = family[1].log_scale.exp()
    x = (last.mean + std * noise[-1])[parts * mixing :].tensor_split(parts)
    fresh, means = last.mean[: parts * mixing].split(mixing), last.mean[parts * mixing :]
    weights = []
    for part, mean, z in zip(x, means.tensor_split(parts), fresh, strict=True):
        own, others = normal_log_density(part, mean, std), pair_log_density(part, z, std)
        weights.append(-lower_bound_loss(own, others, target.log_prob(part)).double())
    weight, each = torch.cat(weights), torch.stack([part.mean() for part in weights])
    ess = (2 * weight.logsumexp(0) - (2 * weight).logsumexp(0)).exp()
    return {
        "lower_bound": weight.mean().item(),
        "standard_error": (each.std() / math.sqrt(parts)).item(),
        "importance_ess": ess.item(),
        "draws": count,
        "mixing": mixing,
    }
