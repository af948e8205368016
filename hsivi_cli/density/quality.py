"""How near a family's samples are to their target, where there is no truth to measure from."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import torch
from torch import Tensor

from ..config import InferConfig
from ..errors import HsiviError
from ..method.losses import lower_bound_loss
from ..method.steps import rng
from .bridge import FAR
from .family import Family
from .packages import quietly
from .smoothed import PLANE, endless
from .targets import Target

PARTS = 20
LOOSE = 0.1  # nats that half of the mixing samples cost
LEAST_SHARE = 0.3  # of the draws that the weights are worth: half the target's sd leaves a fifth
HIGHEST_K = 0.7  # of weights that can be trusted [Vehtari et al. 2024]


@torch.no_grad()
def lower_bound(family: Family, target: Target, count: int, mixing: int, seed: int = 0) -> dict:
    """What the samples weigh against the target, with q's density from J z, fresh ones for each of
    PARTS parts of the samples, by which the error is known.

    target  whitened as the family is

    lower_bound     of log of the target's constant: mean of log p(x) - log q(x), standard error
                    beside. Where p is normalised, minus this is at least KL(q || p); the gap grows
                    fast with the coordinates, as J kernels cover less of them
    half_mixing     the same by half of the z: where it lies well below, the bound is loose
    importance_ess  effective sample size of the weights p / q, out of `count`; and pareto_k, the
                    index of their tail [Vehtari et al. 2024], where ArviZ is installed: both in the
                    plane alone, where J kernels cover q
    """
    parts = min(PARTS, count // 2)
    last = list(family.visits(*family.start(parts * mixing + count, rng(seed, "bound"))))[-1]
    rows = torch.arange(parts * mixing, len(last.below)).tensor_split(parts)
    weights, halves = [], []
    for i, own in enumerate(rows):
        x, z = last.below[own], last.normal[i * mixing : (i + 1) * mixing]
        likelihood, others, density = last.normal[own].log_prob(x), z.pairs(x), target.log_prob(x)
        weights.append(-lower_bound_loss(likelihood, others, density).double())
        halves.append(-lower_bound_loss(likelihood, others[:, : mixing // 2], density).double())
    weight, each = torch.cat(weights), torch.stack([part.mean() for part in weights])
    found = {
        "lower_bound": weight.mean().item(),
        "standard_error": (each.std() / math.sqrt(parts)).item(),
        "half_mixing": torch.cat(halves).mean().item(),
        "draws": count,
        "mixing": mixing,
    }
    return found | (tail_of(weight) if family.dim <= PLANE else {})


def tail_of(weight: Tensor) -> dict[str, float]:
    """importance_ess and pareto_k of log weights [N]."""
    ess = (2 * weight.logsumexp(0) - (2 * weight).logsumexp(0)).exp()
    found = {"importance_ess": ess.item()}
    # ArviZ's troubles are told of where its file is written; weights far apart overflow
    with contextlib.suppress(Exception), np.errstate(all="ignore"):
        k = float(quietly("arviz").psislw(weight.cpu().numpy())[1])
        found |= {"pareto_k": k} if math.isfinite(k) else {}
    return found


def check_samples(samples: Tensor) -> None:
    """Refuse samples [N, dim] of which one is not finite."""
    if bad := (~samples.isfinite()).any(1).sum().item():
        raise HsiviError(
            f"{bad} of {len(samples)} samples hold NaN or infinite values: none was written; begin "
            "in another --out with a lower --student-rate or more --layers"
        )


def strayed(samples: Tensor) -> str | None:
    """That samples [N, dim] lie where no target is looked at, in words."""
    mean = samples.double().mean(0)
    if (far := mean.abs().max()) < FAR:
        return None
    return (
        f"the mean of coordinate {mean.abs().argmax()} is {far:.3g} from 0: beyond {FAR:g} the "
        "target is not checked, and such samples are seldom its own; scale its coordinates"
    )


@torch.no_grad()
def between_seeds(family: Family, samples: Tensor, seed: int) -> dict[str, float]:
    """How far as many draws of another seed differ from samples [N, dim]: chance alone.

    mean  the worst |difference of the means| over coordinates, in sds
    sd    the worst |ratio of the sds - 1|
    """
    x, y = samples.double(), family.sample(len(samples), seed + 1).cpu().double()
    sd = x.std(0).clamp(min=1e-12)
    return {
        "mean": ((x.mean(0) - y.mean(0)).abs() / sd).max().item(),
        "sd": (y.std(0) / sd - 1).abs().max().item(),
    }


def loose(found: dict[str, float]) -> bool:
    return found["lower_bound"] - found["half_mixing"] > LOOSE


def in_words(found: dict[str, float], seeds: dict[str, float]) -> str:
    """What `lower_bound` and `between_seeds` have found, in a line."""
    text = (
        f"draws of two seeds: means {seeds['mean']:.2g} sds apart, sds {seeds['sd']:.1%}; "
        f"lower bound of log Z {found['lower_bound']:.3g} ± {found['standard_error']:.1g}"
    )
    if loose(found):
        return text + (
            f", loose: half of the {found['mixing']} mixing samples give {found['half_mixing']:.3g}"
        )
    return text + (f"; {weights_in_words(found)}" if "importance_ess" in found else "")


def weights_in_words(found: dict[str, float]) -> str:
    tail = f", Pareto k {found['pareto_k']:.2f}" if "pareto_k" in found else ""
    return f"importance weights: ESS {found['importance_ess']:.0f} of {found['draws']}{tail}"


def doubt(found: dict[str, float]) -> str | None:
    """Why the samples are not to be trusted, as far as `lower_bound` can tell."""
    if loose(found) or "importance_ess" not in found:
        return None
    few = found["importance_ess"] < LEAST_SHARE * found["draws"]
    if not few and found.get("pareto_k", 0) <= HIGHEST_K:
        return None
    return (
        f"the samples miss parts of the target, or lie beyond it ({weights_in_words(found)}): give "
        "more --steps or --layers; --compare measures them"
    )


def improper(target: Target, config: InferConfig) -> str | None:
    """That a target in the plane has mass without end, in words. Over the diffusion bridge it was
    refused; above the plane its best Gaussian's search does.
    """
    if target.dim > PLANE or config.bridge != "geometric":
        return None
    try:
        return endless(target, config.seed)
    except HsiviError:  # a user's function may fail so far away, and the run is over
        return None
