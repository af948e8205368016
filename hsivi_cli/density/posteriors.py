"""Posteriors of Bayesian models, on data that are handed in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
