"""p(y given x) by K layers of boosted trees [DBT, Han and Zhou 2024].

    r_K ~ N(0, I),    r_{k-1} = g0 r0 + g1 r_k + sqrt(variance + g0^2 var) noise,    k = K..1
    a draw of y = centre + scale (f(x) + factor r_0)

r0 and var are the mean and the variance of r_0 given (r_k, f, x), each by an ensemble a coordinate;
g0, g1 and variance are the diffusion's (diffusion.py). So each layer has the posterior's own first
two moments, however few there are [Bao et al. 2022]; further ensembles move both until what is
drawn has the right marginal (learner.py). f is the mean of FOLDS ensembles, each grown without one
part of the rows; in training a row has the f of the one that did not see it, or the residuals would
be too small.

Arrays are float64 [N, ...], a row each; y in centre and scale is `standard`. Everything random is a
function of (seed, purpose, layer), and trees are text from the moment that they are grown: a run
that was interrupted ends as one that was not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from ..config import BoostConfig
from ..method.steps import rng
from .diffusion import levels, posterior, r0_of, r0_slope
from .trees import FOLDS, Trees, beside, read_trees

BLOCK = 64  # rows that are drawn for at once; their noises are the block's own


def normals(shape: tuple[int, ...], seed: int, *key: int | str) -> np.ndarray:
    """Standard normals that are a function of the seed and the key."""
    return torch.randn(shape, generator=rng(seed, *key), dtype=torch.float64).numpy()


@dataclass
class Model:
    """What is learned.

    centre, scale  [D] of y; of classes 0 and 1
    factor         [D, D] lower triangular: y - f, in scales, is factor r_0, r_0 of covariance I
    texts          ensembles in LightGBM's format: prior-FOLD-D, layer-K-mean-D, layer-K-variance-D;
                   layer-K-shift-D and layer-K-spread-D where marginals are matched
    """

    trees: Trees
    classes: int
    centre: np.ndarray
    scale: np.ndarray
    factor: np.ndarray
    texts: dict[str, str] = field(default_factory=dict)

    @cached_property
    def read(self) -> dict:
        """The ensembles that were needed so far."""
        return {}

    @property
    def config(self) -> BoostConfig:
        return self.trees.config

    @cached_property
    def alpha_bar(self) -> np.ndarray:
        """[K+1]"""
        return levels(self.config.calls)

    def predict(self, name: str, inputs: np.ndarray) -> np.ndarray:
        """What an ensemble says of inputs [N, C]: [N], of classes [N, D]."""
        if name not in self.read:
            self.read[name] = read_trees(self.texts[name], name)
        return self.read[name].predict(inputs, num_threads=self.config.threads)

    def prior_of_fold(self, fold: int, x: np.ndarray) -> np.ndarray:
        """f [N, D] by the ensembles that were grown without a fold."""
        if self.classes:
            return self.predict(f"prior-{fold}-0", x)
        return np.stack([self.predict(f"prior-{fold}-{d}", x) for d in range(len(self.scale))], 1)

    def prior(self, x: np.ndarray) -> np.ndarray:
        """f [N, D] of rows that were not learned from."""
        return sum(self.prior_of_fold(fold, x) for fold in range(FOLDS)) / FOLDS

    def moments(
        self, k: int, r: np.ndarray, f: np.ndarray, x: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean of r_0 [N, D] given the states r_k [N, D], and its variance, 0 where it is not
        learned.
        """
        inputs, kind = beside([r, f, x]), self.config.prediction_type

        def told(what: str) -> np.ndarray:
            found = [self.predict(f"layer-{k}-{what}-{d}", inputs) for d in range(r.shape[1])]
            return np.stack(found, 1)

        matched = f"layer-{k}-shift-0" in self.texts
        mean = r0_of(told("mean"), r, self.alpha_bar[k], kind)
        mean = mean + told("shift") if matched else mean
        if not self.config.learns_variance:
            return mean, np.zeros_like(mean)
        variance = r0_slope(self.alpha_bar[k], kind) ** 2 * told("variance")
        return mean, variance * np.exp(told("spread")) if matched else variance

    def step(
        self, k: int, r: np.ndarray, f: np.ndarray, x: np.ndarray, noise: np.ndarray
    ) -> np.ndarray:
        """r_{k-1} [N, D] from r_k."""
        mean, variance = self.moments(k, r, f, x)
        to = posterior(self.alpha_bar[k], self.alpha_bar[k - 1])
        spread = np.sqrt(to.variance + to.g0**2 * variance)
        return to.g0 * mean + to.g1 * r + spread * noise

    def sample(self, x: np.ndarray, draws: int, seed: int) -> Iterator[np.ndarray]:
        """Draws of y for rows x [N, C], a block of rows after another: [n, draws, D] each."""
        for number, start in enumerate(range(0, len(x), BLOCK)):
            rows = x[start : start + BLOCK]
            prior = self.prior(rows)
            shape = (len(rows) * draws, prior.shape[1])
            f, rows = (np.repeat(values, draws, axis=0) for values in (prior, rows))
            r = normals(shape, seed, "draw", number, self.config.calls)
            for k in range(self.config.calls, 0, -1):
                r = self.step(k, r, f, rows, normals(shape, seed, "draw", number, k - 1))
            y = self.centre + self.scale * (f + r @ self.factor.T)
            yield y.reshape(-1, draws, shape[1])
