"""Posteriors of Bayesian models, on data that lie within packages or are handed in."""

from __future__ import annotations

import importlib.util

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import HsiviError
from ..method.steps import rng
from .targets import Density


def logistic_regression(inputs: Tensor, labels: Tensor, precision: float = 0.01) -> Density:
    """Posterior of a logistic regression's coefficients, the intercept last.

    inputs     [N, D]
    labels     [N]     0 or 1
    precision  of the normal prior of every coefficient
    """
    design = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)

    def log_prob(x):
        logit = x @ design.to(x).T
        fit = labels.to(x) * logit - nn.functional.softplus(logit)
        return fit.sum(1) - precision / 2 * x.square().sum(1)

    return Density(log_prob, design.shape[1])


def neural_regression(inputs: Tensor, outputs: Tensor, hidden: int = 10) -> Density:
    """Posterior of a regression by one hidden layer of tanh units: outputs ~ N(network, exp(-s)).

    x = (weights [D, hidden], biases [hidden], weights [hidden], bias, s), all N(0, 1) beforehand:
    give inputs and outputs of mean 0 and sd 1.

    inputs   [N, D]
    outputs  [N]
    """

    def log_prob(x):
        mean, s = neural_network(x, inputs, hidden)
        squares = (outputs.to(x) - mean).square().sum(1)
        fit = -squares * s.exp() / 2 + len(outputs) * s / 2
        return fit - x.square().sum(1) / 2

    return Density(log_prob, (inputs.shape[1] + 2) * hidden + 2)


def neural_network(x: Tensor, inputs: Tensor, hidden: int = 10) -> tuple[Tensor, Tensor]:
    """The means [B, N] and log precision s [B] that parameters x [B, dim] give to inputs [N, D]."""
    width = inputs.shape[1]
    first, bias, second, last, s = x.split([width * hidden, hidden, hidden, 1, 1], 1)
    h = torch.einsum("nd,bdh->bnh", inputs.to(x), first.view(-1, width, hidden))
    return torch.einsum("bnh,bh->bn", (h + bias[:, None]).tanh(), second) + last, s[:, 0]


def waveform(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Breiman's waveforms (1984): inputs [count, 21] and labels [count], 1 for the first of the
    three classes.

    Each row is a random mean of two of three triangular waves, plus a standard normal.
    """
    at = torch.arange(1, 22)
    waves = torch.stack([(6 - (at - peak).abs()).clamp(min=0) for peak in (11, 15, 7)]).float()
    pairs = torch.tensor([[0, 1], [0, 2], [1, 2]])
    kind = torch.randint(3, (count,), generator=rng)
    share = torch.rand(count, 1, generator=rng)
    one, other = waves[pairs[kind]].unbind(1)
    inputs = share * one + (1 - share) * other + torch.randn(count, 21, generator=rng)
    return inputs, (kind == 0).float()


def waveform_posterior() -> Density:
    """400 waveforms, the number that the field trains on, always the same ones."""
    return logistic_regression(*waveform(400, rng(0, "waveform")))


def breast_cancer_posterior() -> Density:
    data = packaged("sklearn.datasets").load_breast_cancer()
    return logistic_regression(standard(data.data), torch.as_tensor(data.target))


def digits_posterior() -> Density:
    """Whether a digit is odd, by its 61 pixels that vary."""
    data = packaged("sklearn.datasets").load_digits()
    varies = data.data.std(0) > 0
    return logistic_regression(standard(data.data[:, varies]), torch.as_tensor(data.target % 2))


def diabetes_posterior() -> Density:
    return neural_regression(*(standard(part) for part in diabetes()))


def abalone_posterior() -> Density:
    return neural_regression(*(standard(part) for part in abalone()))


def diabetes() -> tuple[np.ndarray, np.ndarray]:
    """442 patients' 10 measures, and the disease's progress."""
    data = packaged("sklearn.datasets").load_diabetes()
    return data.data, data.target


def abalone() -> tuple[np.ndarray, np.ndarray]:
    """4,177 shells' sex as two indicators and 7 measures, and their rings."""
    shells = packaged("sklego.datasets").load_abalone(as_frame=True)
    sex, rings = shells.pop("sex"), shells.pop("rings")
    inputs = np.column_stack([sex == "M", sex == "F", shells.to_numpy(float)])
    return inputs, rings.to_numpy(float)


POSTERIORS = {
    "logistic-waveform": waveform_posterior,
    "logistic-breast-cancer": breast_cancer_posterior,
    "logistic-digits": digits_posterior,
    "regression-diabetes": diabetes_posterior,
    "regression-abalone": abalone_posterior,
}


def packaged(module: str):
    """A module of data sets that lie within their package."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise HsiviError(
            f"this target's data come with another package ({error}): pip install 'hsivi[infer]' "
            "first"
        ) from error


def standard(values) -> Tensor:
    """Columns of mean 0 and sd 1, float32."""
    values = torch.as_tensor(np.asarray(values), dtype=torch.float64)
    return ((values - values.mean(0)) / values.std(0)).float()
