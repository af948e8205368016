"""Noise levels of a variance-preserving (VP) diffusion, conversions between predictions, and grids
of times.

Conventions, for the whole package: `alpha_bar` in (0, 1] is a level's part of signal,

    x = sqrt(alpha_bar) x0 + sigma noise,    sigma = sqrt(1 - alpha_bar), the VP sigma.

A *table* is alpha_bar at every integer time 0..T-1, float64, falling. Everything with a batch has
it first; a level of shape [B] is stretched over the remaining dimensions of x by `over`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import HsiviError

PREDICTIONS = ("epsilon", "sample", "v_prediction")


def over(level: Tensor, x: Tensor) -> Tensor:
    """One number per sample, shaped to multiply x, in x's dtype and on its device.

    level [B], x [B, ...]
    """
    return level.to(x.device, x.dtype).reshape(-1, *[1] * (x.dim() - 1))


def sigma_of(alpha_bar: Tensor) -> Tensor:
    """The VP sigma, sqrt(1 - alpha_bar)."""
    return (1 - alpha_bar).sqrt()


def add_noise(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """x0 at the level alpha_bar: sqrt(alpha_bar) x0 + sigma noise.

    x0, noise [B, ...], alpha_bar [B]
    """
    return over(alpha_bar.sqrt(), x0) * x0 + over(sigma_of(alpha_bar), x0) * noise


def to_eps(output: Tensor, x: Tensor, alpha_bar: Tensor, prediction: str) -> Tensor:
    """The noise prediction eps that a network's output stands for.

    sample:        eps = (x - sqrt(alpha_bar) x0) / sigma
    v_prediction:  eps = sqrt(alpha_bar) v + sigma x          [Salimans & Ho 2022]

    output, x  [B, ...]
    alpha_bar  [B]       the level of x
    prediction           one of PREDICTIONS
    Returns    [B, ...]
    """
    if prediction == "epsilon":
        return output
    signal, sigma = over(alpha_bar.sqrt(), x), over(sigma_of(alpha_bar), x)
    if prediction == "sample":
        return (x - signal * output) / sigma
    if prediction == "v_prediction":
        return signal * output + sigma * x
    raise ValueError(f"prediction must be one of {PREDICTIONS}, not {prediction!r}")


def eps_to_x0(eps: Tensor, x: Tensor, alpha_bar: Tensor) -> Tensor:
    """The clean sample that a noise prediction stands for, (x - sigma eps) / sqrt(alpha_bar)."""
    return (x - over(sigma_of(alpha_bar), x) * eps) / over(alpha_bar.sqrt(), x)


@dataclass(frozen=True)
class Clip:
    """How a pipeline keeps a network's x0 in the range of its data.

    Clamped to [-reach, reach]; or, with a quantile, by dynamic thresholding [Saharia et al. 2022]:
    s = that quantile of |x0| in a sample, from 1 to reach; x0 is clamped to [-s, s], divided by s.
    """

    reach: float = 1.0
    quantile: float | None = None

    def x0(self, x0: Tensor) -> Tensor:
        """A clean sample [B, ...] in range."""
        if self.quantile is None:
            return x0.clamp(-self.reach, self.reach)
        size = x0.detach().abs().flatten(1).quantile(self.quantile, dim=1).clamp(1, self.reach)
        size = over(size, x0)
        return x0.clamp(-size, size) / size

    def eps(self, eps: Tensor, x: Tensor, alpha_bar: Tensor) -> Tensor:
        """The noise prediction [B, ...] that the clipped x0 stands for, so that a step stays linear
        in what it is fed: eps + sqrt(alpha_bar) / sigma (x0 - clipped x0).
        """
        x0 = eps_to_x0(eps, x, alpha_bar)
        return eps + over(1 / noise_to_signal(alpha_bar), x) * (x0 - self.x0(x0))


def noise_to_signal(alpha_bar: Tensor) -> Tensor:
    """sigma / sqrt(alpha_bar): what an eps network's error is multiplied by in its x0."""
    return sigma_of(alpha_bar) / alpha_bar.sqrt()


AUTO_POWER = 1.2  # of the auto grid's equal steps of depth
GRIDS = ("auto", "quad", "uniform", "log-snr")


def top_ratio(nfe: int) -> float:
    """The noise-to-signal ratio at which the `auto` grid of this many calls begins.

    An eps network's x0 at the top carries its error times this ratio. Many calls hide it, one call
    shows all of it; and one call is regressed, which brings it down from any level.
    """
    return 1.3 if nfe == 1 else 3.4 * nfe**1.4


def grid(kind: str, nfe: int, table: Tensor, top: int | None = None) -> list[int]:
    """The times 0 = time[0] < ... < time[K] of a chain of K = nfe calls.

    quad      time = linspace(0, sqrt(top), K + 1)^2, top = 0.8 T [HSIVI's CIFAR-10 grid]
    uniform   equal steps, top = T - 1
    log-snr   equal steps of log alpha_bar / (1 - alpha_bar), top = T - 1
    auto      u_k = u_K (k / K)^1.2 with u = sqrt(-log alpha_bar), which is nearly linear in time
              for linear betas, so the rule carries over to other schedules; its top is the first
              time whose noise-to-signal ratio reaches `top_ratio`
    "0,150,400"  the times themselves

    table  [T]  alpha_bar by time
    top         the last time, in place of the kind's own
    """
    last = len(table) - 1
    if kind not in GRIDS:
        return explicit_grid(kind, nfe, last)
    if top is not None and not nfe <= top <= last:
        raise HsiviError(
            f"--grid-top {top} does not fit: {nfe} calls need a time from {nfe} to {last}"
        )
    part = torch.linspace(0, 1, nfe + 1, dtype=torch.float64)
    if kind == "quad":
        times = (part * (0.8 * (last + 1) if top is None else top) ** 0.5) ** 2
    elif kind == "uniform":
        times = part * (last if top is None else top)
    elif kind == "log-snr":
        log_snr = table.log() - torch.log1p(-table)
        low = log_snr[last if top is None else top]
        times = nearest(-log_snr, -(log_snr[0] + part * (low - log_snr[0])))
    else:
        if top is None:
            ratio = torch.tensor(top_ratio(nfe), dtype=torch.float64)
            top = min(last, max(nfe, int(torch.searchsorted(noise_to_signal(table), ratio))))
        depth = (-table.log()).sqrt()
        times = nearest(depth, depth[top] * part**AUTO_POWER)
    times = torch.minimum(
        times.round().long(), torch.arange(last - nfe, last + 1)
    )  # room for the times above
    times[0] = 0
    for k in range(1, nfe + 1):  # short schedules: keep neighbours apart
        times[k] = max(times[k], times[k - 1] + 1)
    if times[-1] > last:
        raise HsiviError(
            f"{nfe} calls do not fit into a schedule of {last + 1} times; ask for fewer"
        )
    return times.tolist()


def explicit_grid(text: str, nfe: int, last: int) -> list[int]:
    """Times given by hand, checked: "0,150,340,560,800"."""
    try:
        times = [int(word) for word in text.split(",")]
    except ValueError:
        raise HsiviError(
            f"--grid {text!r} is neither one of {', '.join(GRIDS)} nor times like 0,300,650"
        ) from None
    rising = all(a < b for a, b in pairwise(times))
    if len(times) != nfe + 1 or not rising or times[0] != 0 or times[-1] > last:
        raise HsiviError(
            f"--grid {text} must be {nfe + 1} rising times from 0 to at most {last} for {nfe} calls"
        )
    return times


def nearest(rising: Tensor, values: Tensor) -> Tensor:
    """The index into a rising tensor [T] nearest to each value [...]."""
    right = torch.searchsorted(rising, values).clamp(1, len(rising) - 1)
    return right - (values - rising[right - 1] < rising[right] - values).long()
