"""What trains on a bridge, and the settings that suit a target."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..config import InferConfig
from ..errors import HsiviError
from ..method.steps import make_optimizer, rng
from .bridge import Bridge, tempering_schedule
from .family import Family, mlp
from .gaussian import fit_gaussian
from .smoothed import MOST_LOST, PLANE, Smoothed
from .start import follow_paths
from .targets import Target


def resolved(config: InferConfig, target: Target) -> InferConfig:
    """The settings with each `auto` decided for a target."""
    plane = target.dim <= PLANE
    bridge = config.bridge
    if bridge == "auto":
        points = plane and config.base_scale == 1 and config.frame != "gaussian"
        known = target.levels or (points and by_points(target, config.seed))
        bridge = "diffusion" if known else "geometric"
    whitening = "none" if plane or bridge == "diffusion" else "gaussian"
    objective = (
        ("lb" if plane else "reverse-kl") if config.objective == "auto" else config.objective
    )
    rate = 3e-3 if plane and objective == "lb" else 1e-3
    fake_score = "mixture" if plane and objective == "sm" else "network"
    fake_score = fake_score if config.fake_score == "auto" else config.fake_score
    a, mixing = (1.0, 2000) if fake_score == "mixture" else (0.5, 500)
    return replace(
        config,
        bridge=bridge,
        frame=whitening if config.frame == "auto" else config.frame,
        objective=objective,
        fake_score=fake_score,
        a=a if config.a is None else config.a,
        mixing=mixing if config.mixing is None else config.mixing,
        student_rate=rate if config.student_rate is None else config.student_rate,
        sines=(6 if plane else 0) if config.sines is None else config.sines,
    )


def by_points(target: Target, seed: int) -> bool:
    """Whether points of one width stand for a target in the plane; a funnel's neck and mouth have
    no width in common. A target without points is left to what refuses it.
    """
    try:
        return Smoothed(target, seed).lost() < MOST_LOST
    except Exception:  # whatever a user's function raises is told of by `probe`
        return True


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
    begin: bool = True,
) -> Networks:
    """Networks whose weights are a function of the seed alone, and their optimizers.

    config     resolved
    whitening  centre and factor, where they are known already; else --frame says how to find them
    begin      whether the layers are taught the bridge's paths, as they are before the first step
    """
    dim = target.dim
    tempering = tempering_schedule(config.lambdas, config.layers, config.bridge)
    diffusion = config.bridge == "diffusion"
    if diffusion and config.frame == "gaussian":
        raise HsiviError("--bridge diffusion goes with --frame none: it has coordinates of its own")
    if diffusion and not target.levels:
        target = Smoothed(target, config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng(config.seed, "weights").initial_seed())
        family = Family(dim, config).to(device)
        told = dim + diffusion  # beside x, sigma
        fake_scores = nn.ModuleList(mlp(told, dim, config) for _ in range(config.layers)).to(device)
    if config.frame == "gaussian":
        centre, factor = whitening or best_gaussian(config, target, True, device)
        family.centre.copy_(centre)
        family.factor.copy_(factor)
        target = family.whitened(target)
    bridge = Bridge(target, tempering, config.bridge, config.base_scale)
    if diffusion and begin and config.steps and config.path_steps:
        follow_paths(family, bridge, config)
    return Networks(
        family,
        copy.deepcopy(family).requires_grad_(False),
        fake_scores,
        bridge,
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
    """Whether networks learn the layers' own scores."""
    return config.objective in ("sm", "reverse-kl") and not by_mixture(config)


def by_mixture(config: InferConfig) -> bool:
    """Whether score matching takes the layers' own scores from a roll-out's normals."""
    return config.objective == "sm" and config.fake_score == "mixture"
