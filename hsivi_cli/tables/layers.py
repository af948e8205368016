"""p(y given x) by K layers of boosted trees [DBT, Han and Zhou 2024].

    r_K ~ N(0, I),    r_{k-1} = g0 r0 + g1 r_k + sqrt(variance + g0^2 var) noise,    k = K..1
    a draw of y = centre + scale (f(x) + width r_0)

r0 and var are the mean and the variance of r_0 given (r_k, f, x), each by an ensemble a coordinate;
g0, g1 and variance are the diffusion's (diffusion.py). So each layer has the posterior's own first
two moments, however few there are [Bao et al. 2022]. f is the mean of FOLDS ensembles, each grown
without one part of the rows; in training a row has the f of the one that did not see it, or the
residuals would be too small.

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
from .diffusion import levels, posterior, r0_of, r0_slope, target_of
from .table import Table
from .trees import FOLDS, Trees, beside, read_trees

LEAST_WIDTH = 1e-6  # of the target's sd, where f tells all
BLOCK = 64  # rows that are drawn for at once; their noises are the block's own


def normals(shape: tuple[int, ...], seed: int, *key: int | str) -> np.ndarray:
    """Standard normals that are a function of the seed and the key."""
    return torch.randn(shape, generator=rng(seed, *key), dtype=torch.float64).numpy()


@dataclass
class Model:
    """What is learned.

    centre, scale  [D] of y; of classes 0 and 1
    width          [D] sd of y - f, in scales
    texts          ensembles in LightGBM's format: prior-FOLD-D, layer-K-mean-D, layer-K-variance-D
    """

    trees: Trees
    classes: int
    centre: np.ndarray
    scale: np.ndarray
    width: np.ndarray
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
    ) -> tuple[np.ndarray, np.ndarray | float]:
        """Mean [N, D] of r_0 given the states r_k [N, D], and its variance: of each, or 0 where it
        is not learned.
        """
        inputs, kind = beside([r, f, x]), self.config.prediction_type
        found = [self.predict(f"layer-{k}-mean-{d}", inputs) for d in range(r.shape[1])]
        mean = r0_of(np.stack(found, 1), r, self.alpha_bar[k], kind)
        if not self.config.learns_variance:
            return mean, 0.0
        found = [self.predict(f"layer-{k}-variance-{d}", inputs) for d in range(r.shape[1])]
        return mean, r0_slope(self.alpha_bar[k], kind) ** 2 * np.stack(found, 1)

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
            y = self.centre + self.scale * (f + self.width * r)
            yield y.reshape(-1, draws, shape[1])


@dataclass
class Learner:
    """A table and the model that is learned from it, layer after layer from K down."""

    table: Table
    model: Model

    @classmethod
    def new(cls, table: Table, config: BoostConfig) -> Learner:
        categories = [i for i, column in enumerate(table.inputs) if column.words is not None]
        classes, ones = len(table.classes or ()), np.ones(table.y.shape[1])
        centre, scale = (0 * ones, ones) if classes else (table.y.mean(0), table.y.std(0))
        return cls(table, Model(Trees(config, tuple(categories)), classes, centre, scale, ones))

    @cached_property
    def fold(self) -> np.ndarray:
        """The part of the rows that each belongs to [N], of equal sizes."""
        generator = rng(self.model.config.seed, "folds")
        return torch.randperm(len(self.table.x), generator=generator).numpy() % FOLDS

    @cached_property
    def standard(self) -> np.ndarray:
        return (self.table.y - self.model.centre) / self.model.scale

    @cached_property
    def f(self) -> np.ndarray:
        """f of the training rows [N, D], each by what has not seen it."""
        f = np.empty_like(self.table.y)
        for fold in range(FOLDS):
            f[self.fold == fold] = self.model.prior_of_fold(fold, self.table.x[self.fold == fold])
        return f

    def learn_prior(self) -> dict[str, float]:
        """Grow f, and measure what it leaves."""
        model, y = self.model, self.standard
        wanted = [y.argmax(1)] if model.classes else y.T
        for d, column in enumerate(wanted):
            grown = model.trees.prior(self.table.x, column, self.fold, model.classes)
            model.texts |= {f"prior-{fold}-{d}": text for fold, text in enumerate(grown)}
        left = (y - self.f).std(0)
        model.width = np.maximum(left, LEAST_WIDTH)
        return {"left": left.mean().item()}

    def learn_layer(self, k: int) -> dict[str, float]:
        """Grow layer k on `repeats` noised states of every row. Its losses over coordinates: `loss`
        is the mean squared error of what trees predict, and `deviance` what a normal of their mean
        and variance loses on it (both 1 for v_prediction where trees find nothing).
        """
        model, config = self.model, self.model.config
        copies, alpha_bar = config.repeats, model.alpha_bar[k]
        r0 = (self.standard - self.f) / model.width
        r0, f, x = (np.repeat(values, copies, axis=0) for values in (r0, self.f, self.table.x))
        noise = normals(r0.shape, config.seed, "learn", k)
        r = np.sqrt(alpha_bar) * r0 + np.sqrt(1 - alpha_bar) * noise
        inputs, before = beside([r, f, x]), 2 * r0.shape[1]
        wanted = target_of(r0, noise, alpha_bar, config.prediction_type)
        losses, deviances = [], []
        for d, column in enumerate(wanted.T):
            name = f"layer-{k}-mean-{d}"
            model.texts[name] = model.trees.fit(inputs, column, "regression", before, copies)
            squares = (column - model.predict(name, inputs)) ** 2
            losses.append(squares.mean())
            if config.learns_variance:
                name = f"layer-{k}-variance-{d}"
                above = np.maximum(squares, np.finfo(np.float32).tiny)  # a gamma's are
                model.texts[name] = model.trees.fit(inputs, above, "gamma", before, copies)
                variance = model.predict(name, inputs)
                deviances.append((squares / variance + np.log(variance)).mean())
        found = {"loss": np.mean(losses).item()}
        return found | ({"deviance": np.mean(deviances).item()} if deviances else {})
