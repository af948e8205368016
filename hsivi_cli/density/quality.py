"""How near a family's samples are to their target, where there is no truth to measure from."""

from __future__ import annotations

import math

import torch

from ..method.losses import lower_bound_loss, normal_log_density, pair_log_density
from ..method.steps import rng
from .family import Family
from .targets import Target

PARTS = 20


@torch.no_grad()
def lower_bound(family: Family, target: Target, count: int, mixing: int, seed: int = 0) -> dict:
    """What the samples weigh against the target, with q's density from J z, fresh ones for each of
    PARTS parts of the samples, by which the error is known.

    target  whitened as the family is

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
