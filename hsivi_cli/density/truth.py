"""Distances of draws to a truth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .nuts import Chains
from .packages import quietly


@dataclass(frozen=True)
class Truth:
    """What the others are measured from.

    kind   exact (independent draws) or nuts
    draws  [N, dim]
    error  [dim]  standard error of the draws' mean
    """

    kind: str
    draws: Tensor
    error: Tensor


def exact_truth(draws: Tensor) -> Truth:
    return Truth("exact", draws, draws.double().std(0) / len(draws) ** 0.5)


def nuts_truth(chains: Chains) -> Truth:
    arviz, draws = quietly("arviz"), chains.draws.cpu()
    error = arviz.mcse(arviz.convert_to_dataset(draws.double().numpy()))["x"].to_numpy()
    return Truth("nuts", draws.flatten(0, 1), torch.as_tensor(error.copy()))


def errors(draws: Tensor, truth: Truth, own_error: Tensor | None = None) -> dict[str, float]:
    """How far draws [N, dim] are from the truth; each the worst over coordinates or pairs.

    mean_error         |difference of the means| in the truth's sds
    mean_z             the same in Monte Carlo standard errors of the two means together
    mean_z_perfect     what that is on average for independent draws of the truth itself
    sd_error           |ratio of the sds - 1|
    correlation_error  |difference of the correlations|
    js, w1             Jensen-Shannon divergence (60 x 60 bins over the middle 99 % of the truth
                       along each coordinate, one for all outside) and sliced W1, in the plane

    own_error  [dim]  standard error of the draws' mean; that of independent ones if left out
    """
    x, y = draws.double(), truth.draws.double()
    gap, sd = (x.mean(0) - y.mean(0)).abs(), y.std(0)
    own_error = x.std(0) / len(x) ** 0.5 if own_error is None else own_error
    found = {
        "mean_error": (gap / sd).max(),
        "mean_z": (gap / (own_error.square() + truth.error.square()).sqrt()).max(),
        "mean_z_perfect": torch.tensor(largest_of_normals(x.shape[1])),
        "sd_error": (x.std(0) / sd - 1).abs().max(),
    }
    if x.shape[1] > 1:
        found["correlation_error"] = (x.T.corrcoef() - y.T.corrcoef()).abs().max()
    found = {key: value.item() for key, value in found.items()}
    return found | plane_errors(draws, truth)


def largest_of_normals(count: int) -> float:
    """The mean of the largest |z| of independent standard normals.

    E max |z| = integral over t > 0 of 1 - erf(t / sqrt 2)^count
    """
    t = torch.linspace(0, 10, 10_001, dtype=torch.float64)
    return torch.trapezoid(1 - torch.erf(t / math.sqrt(2)) ** count, t).item()


def plane_errors(draws: Tensor, truth: Truth) -> dict[str, float]:
    """`js` and `w1` of `errors`; nothing for other than two coordinates."""
    if draws.shape[1] != 2:
        return {}
    x, y = draws.double(), truth.draws.double()
    count = min(len(x), len(y))
    js = jensen_shannon(*on_ruler(y, x, y), reach=1)
    return {"js": js, "w1": sliced_w1(draws[:count], truth.draws[:count])}


def on_ruler(truth: Tensor, *clouds: Tensor) -> list[Tensor]:
    """Clouds of points [N, 2], moved and stretched so that the middle 99 % of the truth's values
    along each coordinate lie in [-1, 1]: quantiles, which no outlier of heavy tails moves.
    """
    low, high = truth.quantile(torch.tensor([0.005, 0.995]).to(truth), dim=0)
    return [(x - (low + high) / 2) / ((high - low) / 2) for x in clouds]


def sliced_w1(a: Tensor, b: Tensor, directions: int = 64) -> float:
    """Mean over directions at equal angles of the 1-Wasserstein distance of the projections.

    a, b  [N, 2], equally many
    """
    angle = torch.arange(directions) * math.pi / directions
    unit = torch.stack([angle.cos(), angle.sin()])
    a, b = ((x.float() @ unit).sort(dim=0).values for x in (a, b))
    return (a - b).abs().mean().item()


def jensen_shannon(a: Tensor, b: Tensor, bins: int = 60, reach: float = 2.0) -> float:
    """Jensen-Shannon divergence in nats of the histograms over [-reach, reach]^2, and one cell more
    for all that lies outside. a, b [N, 2].

    Finite samples alone give about bins^2 / 8 (1/N_a + 1/N_b), where the cells are well filled.
    """
    p, q = histogram(a, bins, reach), histogram(b, bins, reach)
    middle = (p + q) / 2
    half = [torch.special.xlogy(r, r / middle.clamp(min=1e-300)).sum() for r in (p, q)]
    return (sum(half) / 2).item()


def histogram(x: Tensor, bins: int, reach: float) -> Tensor:
    """The share of x [N, 2] in each cell of the square and outside [bins^2 + 1]."""
    cell = ((x.double() + reach) / (2 * reach) * bins).floor().long()
    inside = ((cell >= 0) & (cell < bins)).all(1)
    index = torch.where(inside, cell[:, 0] * bins + cell[:, 1], bins * bins)
    return torch.bincount(index, minlength=bins * bins + 1).double() / len(x)
