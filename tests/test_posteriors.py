"""Posteriors against torch's own likelihoods, and the data that lie within packages."""

import sys

import pytest
import torch

from hsivi_cli.density.datasets import abalone, diabetes, digits, waveform
from hsivi_cli.density.posteriors import logistic_regression, neural_regression
from hsivi_cli.errors import HsiviError


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def test_a_logistic_posterior_is_torchs_likelihood_and_prior():
    inputs, labels = waveform(30, rng())
    x = numbers(4, 22)
    logit = inputs.double() @ x[:, :21].T + x[:, 21]
    likelihood = torch.distributions.Bernoulli(logits=logit).log_prob(labels[:, None].double())
    expected = likelihood.sum(0) - 0.005 * x.square().sum(1)
    target = logistic_regression(inputs, labels)
    torch.testing.assert_close(target.log_prob(x), expected, rtol=1e-6, atol=1e-6)


def test_a_networks_posterior_is_torchs_likelihood_and_prior():
    inputs, outputs = numbers(20, 3), numbers(20, seed=1)
    x = numbers(5, 5 * 4 + 2, seed=2)
    normal = torch.distributions.Normal
    expected = []
    for row in x:
        first, bias, second, last, s = row.split([12, 4, 4, 1, 1])
        mean = torch.tanh(inputs @ first.view(3, 4) + bias) @ second + last
        expected.append(normal(mean, (-s / 2).exp()).log_prob(outputs).sum()
                        + normal(0.0, 1.0).log_prob(row).sum())  # fmt: skip
    gap = neural_regression(inputs, outputs, hidden=4).log_prob(x) - torch.stack(expected)
    torch.testing.assert_close(gap, gap[:1].expand(5))  # up to a constant


def test_waveforms_have_breimans_means():
    inputs, labels = waveform(60_000, rng())
    assert labels.mean().item() == pytest.approx(1 / 3, abs=0.01)
    wave = (6 - (torch.arange(1, 22) - 11).abs()).clamp(min=0) / 2
    other = (6 - (torch.arange(1, 22) - 15).abs()).clamp(min=0) / 2
    # 20,000 rows of sd at most 2.1: 5 standard errors are .075
    torch.testing.assert_close(inputs[labels == 1].mean(0), wave + other, rtol=0, atol=0.075)


def test_the_packaged_data_are_those_that_are_said():
    inputs, rings = abalone()
    assert inputs.shape == (4177, 9) and inputs[:, :2].unique(dim=0).shape == (3, 2)
    assert len(rings.unique()) == 28  # 1 to 29 without 28
    for part in (inputs, rings, *diabetes()):
        torch.testing.assert_close(part.mean(0), torch.zeros(part.shape[1:]), rtol=0, atol=1e-5)
        torch.testing.assert_close(part.std(0), torch.ones(part.shape[1:]))
    pixels, odd = digits()
    assert pixels.shape == (1797, 61) and set(odd.tolist()) == {0, 1}


def test_without_scikit_learn_its_data_sets_say_how_to_have_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(HsiviError, match=r"pip install 'hsivi\[infer\]'"):
        diabetes()
