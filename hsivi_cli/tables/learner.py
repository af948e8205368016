"""The layers of a table, learned one after another from layer K down.

Each is grown on the rows' own y, noised forward to its level: of a drawn state nobody knows which y
it belongs to, and trees that were to tell y from such pairs would tell its mean, whatever the
state. Drawn states serve where the marginal alone counts (`match_layer`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ..config import BoostConfig
from ..method.steps import rng
from .diffusion import posterior, target_of
from .layers import Model, normals
from .table import Table
from .trees import FOLDS, Growing, Trees, beside

LEAST_WIDTH = 1e-6  # of the target's sd, where f tells all


def crps_gradient(draws: np.ndarray, y: np.ndarray, alpha_bar: float) -> np.ndarray:
    """S times the gradient of scores.crps by the draws [N, S], over y [N] noised to a level.

    E sign(draw - y) - E sign(draw - draw'), and over y ~ N(sqrt(ab) y, sigma^2) the first is
    2 Phi((draw - sqrt(ab) y) / sigma) - 1
    """
    count = draws.shape[1]
    beyond = draws - np.sqrt(alpha_bar) * y[:, None]
    if alpha_bar < 1:
        sigmas = torch.as_tensor(beyond / np.sqrt(1 - alpha_bar))
        sign = 2 * torch.special.ndtr(sigmas).numpy() - 1
    else:
        sign = np.sign(beyond)
    rank = draws.argsort(1).argsort(1)
    return sign - (2 * rank - count + 1) / (count - 1)


def factor_of(left: np.ndarray, together: bool) -> np.ndarray:
    """The lower triangular factor of the covariance of y - f [N, D], or of its diagonal."""
    covariance = np.atleast_2d(np.cov(left.T, ddof=0))
    if not together:  # of classes, which sum to 1, it has no inverse
        covariance = np.diag(covariance.diagonal())
    return np.linalg.cholesky(covariance + LEAST_WIDTH**2 * np.eye(len(covariance)))


@dataclass
class Learner:
    """A table and the model that is learned from it, layer after layer from K down."""

    table: Table
    model: Model
    states: tuple[int, np.ndarray] | None = None  # the level and the states of `drawn`

    @classmethod
    def new(cls, table: Table, config: BoostConfig) -> Learner:
        categories = [i for i, column in enumerate(table.inputs) if column.words is not None]
        classes, ones = len(table.classes or ()), np.ones(table.y.shape[1])
        centre, scale = (0 * ones, ones) if classes else (table.y.mean(0), table.y.std(0))
        trees = Trees(config, len(table.inputs), tuple(categories))
        return cls(table, Model(trees, classes, centre, scale, np.diag(ones)))

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
        left = y - self.f
        model.factor = factor_of(left, together=not model.classes)
        return {"left": left.std(0).mean().item()}

    def learn_layer(self, k: int) -> dict[str, float]:
        """Grow layer k on `repeats` noised states of every row, and match its marginal. Its losses
        over coordinates: `loss` is the mean squared error of what trees predict, and `deviance`
        what a normal of their mean and variance loses on it (both 1 for v_prediction where trees
        find nothing).
        """
        model, config = self.model, self.model.config
        alpha_bar = model.alpha_bar[k]
        r0, f, x = self.repeated
        noise = normals(r0.shape, config.seed, "learn", k)
        r = np.sqrt(alpha_bar) * r0 + np.sqrt(1 - alpha_bar) * noise
        inputs, wanted = beside([r, f, x]), target_of(r0, noise, alpha_bar, config.prediction_type)
        losses, deviances = [], []
        for d, column in enumerate(wanted.T):
            name = f"layer-{k}-mean-{d}"
            model.texts[name] = model.trees.fit(inputs, column, "regression")
            squares = (column - model.predict(name, inputs)) ** 2
            losses.append(squares.mean())
            if config.learns_variance:
                name = f"layer-{k}-variance-{d}"
                above = np.maximum(squares, np.finfo(np.float32).tiny)  # a gamma's are
                model.texts[name] = model.trees.fit(inputs, above, "gamma")
                variance = model.predict(name, inputs)
                deviances.append((squares / variance + np.log(variance)).mean())
        if config.match:
            self.match_layer(k)
        found = {"loss": np.mean(losses).item()}
        return found | ({"deviance": np.mean(deviances).item()} if deviances else {})

    def match_layer(self, k: int) -> None:
        """Add the trees that match layer k's marginal on the states that the layers above draw.

        What it draws for a row is to be distributed as the row's own y, noised to the level below.
        The CRPS of its draws is a proper score of that marginal alone: it asks for no pairs of a
        drawn state and a y, and there are none. `match` trees go down its gradient, which move the
        mean that the layer has of r_0, and the logarithm of its variance.
        """
        model, config = self.model, self.model.config
        below = model.alpha_bar[k - 1]
        to = posterior(model.alpha_bar[k], below)
        r0, f, x = self.repeated
        r = self.drawn(k)
        mean, variance = model.moments(k, r, f, x)
        inputs = beside([r, f, x])
        for d in range(r.shape[1]):
            shift, spread = (Growing(model.trees, inputs) for _ in range(2))
            for number in range(config.match):
                noise = normals((len(r),), config.seed, "match", k, d, number)
                own = to.g0**2 * variance[:, d] * np.exp(spread.total)
                sd = np.sqrt(to.variance + own)
                draws = to.g0 * (mean[:, d] + shift.total) + to.g1 * r[:, d] + sd * noise
                draws = draws.reshape(-1, config.repeats)
                slope = crps_gradient(draws, r0[:: config.repeats, d], below).ravel()
                shift.add(to.g0 * slope, np.full(len(r), to.g0**2))
                if config.learns_variance:
                    turn = noise * own / (2 * sd)  # d draw / d log variance
                    spread.add(turn * slope, np.full(len(r), np.mean(turn**2)))
            model.texts[f"layer-{k}-shift-{d}"] = shift.text()
            if config.learns_variance:
                model.texts[f"layer-{k}-spread-{d}"] = spread.text()

    @cached_property
    def repeated(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """r_0, f and x of every row, `repeats` times each, beside one another."""
        r0 = np.linalg.solve(self.model.factor, (self.standard - self.f).T).T
        values, copies = (r0, self.f, self.table.x), self.model.config.repeats
        return tuple(np.repeat(one, copies, axis=0) for one in values)

    def drawn(self, k: int) -> np.ndarray:
        """The states r_k that the layers above k draw for the repeated rows. They are gone on with
        from layer to layer, and drawn anew, the same, where a run goes on.
        """
        _, f, x = self.repeated
        top, seed = self.model.config.calls, self.model.config.seed
        at, r = self.states or (top, normals(f.shape, seed, "state", top))
        for layer in range(at, k, -1):
            r = self.model.step(layer, r, f, x, normals(f.shape, seed, "state", layer - 1))
        self.states = (k, r)
        return r
