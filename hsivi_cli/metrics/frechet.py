"""Distances between two sets of feature vectors: Fréchet, kernel (KID), precision and recall.

Throughout: features are rows, [N, D]; moments and sums are float64; `mean` and `cov` are those of
pytorch-fid (`np.mean`, `np.cov`, hence n - 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """The Gaussian that stands for a set of images.

    count        number of images
    mean  [D]    float64
    cov   [D, D] float64, unbiased
    """

    count: int
    mean: Tensor
    cov: Tensor


class MomentSum:
    """Streaming moments: `update` with batches of any sizes, then `result`.

    Each batch is centred on its own mean before it is squared, and two sets are merged by
        scatter = scatter_1 + scatter_2 + n_1 n_2 / (n_1 + n_2) delta delta^T,   delta = mean_2 -
        mean_1,
    so that no large numbers cancel [Chan, Golub, LeVeque 1979].
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None
        self.scatter: Tensor | None = None

    def update(self, features: Tensor) -> None:
        """Add a batch of features [B, D]; they stay on their device."""
        if features.ndim != 2:
            raise ValueError(f"features must be [B, D], not {tuple(features.shape)}")
        features = features.detach().double()
        count = len(features)
        if count == 0:
            return
        mean = features.mean(0)
        centred = features - mean
        self.merge(count, mean, centred.T @ centred)

    def merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        """Add `count` features of this mean [D] and scatter [D, D] about it."""
        if self.mean is None or self.scatter is None:
            self.count, self.mean, self.scatter = count, mean, scatter
            return
        total = self.count + count
        delta = mean - self.mean
        # new tensors, for a result that was handed out must not change
        correction = torch.outer(delta, delta) * (self.count * count / total)
        self.scatter = self.scatter + scatter + correction
        self.mean = self.mean + delta * (count / total)
        self.count = total

    def result(self) -> Moments:
        """The moments of all rows so far, on the CPU; at least two, or there is no covariance."""
        if self.count < 2 or self.mean is None or self.scatter is None:
            raise ValueError(f"moments need at least 2 rows, not {self.count}")
        return Moments(self.count, self.mean.cpu(), (self.scatter / (self.count - 1)).cpu())


def merged(parts: Sequence[Moments]) -> Moments:
    """The moments of all rows, of those of parts of them."""
    total = MomentSum()
    for part in parts:
        total.merge(part.count, part.mean, part.cov * (part.count - 1))
    return total.result()


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared 2-Wasserstein distance between two Gaussians [Dowson and Landau 1982].

    |mean_a - mean_b|^2 + tr C_a + tr C_b - 2 tr sqrt(C_a C_b)

    With C = R R^T, the last trace is the sum of the singular values of R_a^T R_b: it needs no
    matrix square root, and holds for covariances of any rank.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"feature widths differ: {len(a.mean)} and {len(b.mean)}")
    mean_a, mean_b = a.mean.double(), b.mean.double()
    cov_a, cov_b = a.cov.double(), b.cov.double()
    overlap = torch.linalg.svdvals(_root(cov_a).T @ _root(cov_b)).sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * overlap
    return max(distance.item(), 0.0)  # rounding leaves equal Gaussians a hair below 0


def standard_error(seen: Moments, reference: Moments, features: Tensor) -> float:
    """How much `frechet_distance(seen, reference)` varies between sets of `seen.count` images of
    one sampler, to first order: the standard deviation of the distance's influence function

    i(x) = 2 (m - m_r).d + d.d - d^T T d,   d = x - m,   T = R (R^T C R)^(-1/2) R^T,   C_r = R R^T

    over the images, divided by sqrt(count). T maps the one Gaussian onto the other.

    features [N, D]  of the images or a part of them, however many `seen` are
    """
    root = _root(reference.cov.double())
    values, vectors = torch.linalg.eigh(root.T @ seen.cov.double() @ root)
    keep = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    transport = root @ vectors[:, keep] * values[keep] ** -0.25
    mean = seen.mean.double()
    deviation = features.double().cpu() - mean
    slope = 2 * deviation @ (mean - reference.mean.double())
    curve = deviation.square().sum(1) - (deviation @ transport).square().sum(1)
    return (slope + curve).std().item() / math.sqrt(seen.count)


def _root(cov: Tensor) -> Tensor:
    """R with R R^T = cov [D, rank]; eigenvalues at the level of rounding are dropped."""
    values, vectors = torch.linalg.eigh((cov + cov.T) / 2)
    keep = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, keep] * values[keep].sqrt()


def kernel_distance(
    x: Tensor,
    y: Tensor,
    subsets: int = 100,
    subset_size: int = 1000,
    rng: torch.Generator | None = None,
) -> tuple[float, float]:
    """KID: the unbiased squared maximum mean discrepancy, over random subsets [Binkowski 2018].

    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)
    with k(x, y) = (x.y / D + 1)^3

    x [N, D], y [M, D]
    subset_size   lowered to the smaller of the two sets
    rng           a CPU generator that draws the subsets
    Returns mean and standard deviation over the subsets. The mean can be negative: for equal sets
    its expectation is 0.
    """
    size = min(subset_size, len(x), len(y))
    if size < 2:
        raise ValueError("a kernel distance needs at least 2 rows on each side")
    values = []
    for _ in range(subsets):
        rows_x = torch.randperm(len(x), generator=rng)[:size].to(x.device)
        rows_y = torch.randperm(len(y), generator=rng)[:size].to(y.device)
        values.append(_squared_discrepancy(x[rows_x].double(), y[rows_y].double()))
    values = torch.stack(values).cpu()
    return values.mean().item(), values.std(correction=0).item()


def _squared_discrepancy(x: Tensor, y: Tensor) -> Tensor:
    n, width = x.shape

    def kernel(u: Tensor, v: Tensor) -> Tensor:
        return (u @ v.T / width + 1) ** 3

    within = sum(k.sum() - k.trace() for k in (kernel(x, x), kernel(y, y)))
    return within / (n * (n - 1)) - 2 * kernel(x, y).mean()


NEIGHBOURS = 3  # of precision and recall; a set of no more points has neither


def precision_recall(
    real: Tensor, fake: Tensor, neighbours: int = NEIGHBOURS
) -> tuple[float, float]:
    """Improved precision and recall [Kynkäänniemi 2019].

    A set's manifold is the union of balls about its points that reach their `neighbours`-th
    neighbour. real [N, D], fake [M, D]
    Returns (precision: the fraction of fakes inside the real manifold, recall: that of reals inside
    the fake one)
    """
    if min(len(real), len(fake)) <= neighbours:
        raise ValueError(f"precision and recall need more than {neighbours} rows on each side")
    return _fraction_inside(fake, real, neighbours), _fraction_inside(real, fake, neighbours)


def _fraction_inside(points: Tensor, manifold: Tensor, neighbours: int) -> float:
    points, manifold = points.double(), manifold.double()
    # a point's nearest neighbour in its own set is itself, hence + 1
    radius = torch.cat([d.kthvalue(neighbours + 1).values for d in _distances(manifold, manifold)])
    inside = torch.cat([(d <= radius).any(1) for d in _distances(points, manifold)])
    return inside.double().mean().item()


def _distances(x: Tensor, y: Tensor, chunk: int = 1024):
    """Euclidean distances, `chunk` rows of x at a time."""
    # by matrix products: in float64 their rounding is 1e-8 of a norm, far below any radius
    for rows in x.split(chunk):
        yield torch.cdist(rows, y, compute_mode="use_mm_for_euclid_dist")
