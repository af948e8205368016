"""The densities between base and target that the marginals are matched to."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import HsiviError
from ..method.losses import normal_log_density
from .targets import Target


@dataclass(frozen=True)
class Bridge:
    """The densities p_0 (the target) to p_K that the marginals are matched to.

    geometric  p_base^(1 - lambda_k) p^lambda_k
    diffusion  the target at the VP level alpha_bar = lambda_k: its levels are known, or those of
               points in the plane (smoothed.py)

    tempering  lambda_k, [K+1]: from 1 down to 0
    """

    target: Target
    tempering: tuple[float, ...]
    kind: str
    base_scale: float

    @property
    def lowest(self) -> float:
        """The least sigma above 0 at which the diffused target is known."""
        return getattr(self.target, "lowest", 0.0)

    def level(self, x: Tensor, k: int, level: float | Tensor | None) -> Tensor:
        """lambda of each row of x, [B, 1]: layer k's own where none is given."""
        level = torch.as_tensor(self.tempering[k] if level is None else level)
        return level.to(x).expand(len(x), 1)

    def log_prob(self, x: Tensor, k: int, level: float | Tensor | None = None) -> Tensor:
        """log p_k up to a constant [B]; level is a lambda in place of layer k's own, one for all
        or one a row [B, 1].
        """
        level = self.level(x, k, level)[:, 0]
        if (level == 1).all():
            return self.target.log_prob(x)
        if self.kind == "diffusion":
            return self.target.log_prob(x, level)
        base = normal_log_density(x, torch.zeros_like(x), torch.full_like(x, self.base_scale))
        return (1 - level) * base + (level * self.target.log_prob(x) if level.any() else 0)

    def score(self, x: Tensor, k: int, level: float | Tensor | None = None) -> Tensor:
        """grad_x log p_k [B, dim], with `level` as in log_prob."""
        level = self.level(x, k, level)
        if (level == 1).all():
            return self.target.score(x)
        if self.kind == "diffusion":
            return self.target.score(x, level[:, 0])
        score = level * self.target.score(x) if level.any() else 0
        return score - (1 - level) / self.base_scale**2 * x


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


LOWEST = 1e-3  # alpha_bar of the highest level: at 0 there is nothing of the layer to judge
