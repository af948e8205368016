"""The densities between base and target that the marginals are matched to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..config import InferConfig
from ..errors import HsiviError
from ..method.losses import normal_log_density
from .targets import Target


@dataclass(frozen=True)
class Bridge:
    """The densities p_0 (the target) to p_K that the marginals are matched to.

    geometric  p_base^(1 - lambda_k) p^lambda_k
    diffusion  the target at the VP level alpha_bar = lambda_k, where it knows its levels

    tempering  lambda_k, [K+1]: from 1 down to 0
    """

    target: Target
    tempering: tuple[float, ...]
    kind: str
    base_scale: float

    def log_prob(self, x: Tensor, k: int, level: float | None = None) -> Tensor:
        """log p_k up to a constant [B]; level is a lambda in place of layer k's own."""
        level = self.tempering[k] if level is None else level
        if level == 1:
            return self.target.log_prob(x)
        if self.kind == "diffusion":
            return self.target.log_prob(x, x.new_full((len(x),), level))
        base = normal_log_density(x, torch.zeros_like(x), torch.full_like(x, self.base_scale))
        return (1 - level) * base + (level * self.target.log_prob(x) if level else 0)

    def score(self, x: Tensor, k: int, level: float | None = None) -> Tensor:
        """grad_x log p_k [B, dim]. Refuses a target whose gradient is not finite."""
        level = self.tempering[k] if level is None else level
        if self.kind == "diffusion" and level < 1:
            return check_score(self.target.score(x, x.new_full((len(x),), level)), x)
        score = level * check_score(self.target.score(x), x) if level else 0
        return score if level == 1 else score - (1 - level) / self.base_scale**2 * x


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


def tempering_schedule(text: str, count: int, kind: str) -> tuple[float, ...]:
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


def level_of(config: InferConfig, tempering: Sequence[float], k: int, step: int) -> float:
    """alpha_bar at which layer k is judged at a step.

    Its own is tempering[k-1]. With --levels falling over the diffusion bridge sigma begins at the
    layer above's and falls to its own in equal steps: modes share their mass out while they
    overlap; once they lie apart, no gradient of a reverse KL knows how much each should hold.
    Score matching loses modes where it begins near its own level: there sigma begins at the base's.
    """
    if config.levels == "own" or config.bridge != "diffusion":
        return tempering[k - 1]
    fall, top = (SM_FALL, config.layers) if config.objective == "sm" else (FALL, k)
    own, above = (math.sqrt(1 - tempering[i]) for i in (k - 1, top))
    part = config.steps / (config.layers if config.order == "sequential" else 1)
    left = max(0.0, 1 - max(0, step) % part / part / fall)
    return max(LOWEST, 1 - (own + left * (above - own)) ** 2) if left else tempering[k - 1]


def noised(mean: Tensor, std: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """The normal N(mean, std^2) where x becomes sqrt(level) x + sqrt(1 - level) noise."""
    if level == 1:
        return mean, std
    return math.sqrt(level) * mean, (level * std.square() + 1 - level).sqrt()
