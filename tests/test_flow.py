"""The normalising flow that the layers are compared with."""

from itertools import count
from types import SimpleNamespace

import torch

from hsivi_cli.density import flow
from hsivi_cli.density.flow import flow_draws
from hsivi_cli.density.targets import GaussianMixture


def test_a_flow_of_a_few_seconds_has_a_gaussians_means_and_covariance(monkeypatch):
    updates = count()  # by the test's clock 120 of them make a second, on any machine
    clock = SimpleNamespace(process_time=lambda: next(updates) / 120)
    monkeypatch.setattr(flow, "time", clock)
    mean, cov = torch.tensor([0.8, -0.5]), torch.tensor([[1.0, 0.6], [0.6, 0.8]])
    x = flow_draws(GaussianMixture(mean[None], cov), 1.0, 20_000, seed=0)
    assert next(updates) == 121  # it was asked before the first and after each
    assert x.shape == (20_000, 2)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.15)
    torch.testing.assert_close(x.T.cov(), cov, rtol=0, atol=0.2)


def test_the_callers_own_random_numbers_are_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    flow_draws(GaussianMixture(torch.zeros(1, 2), 1.0), 0.01, 10, seed=0)
    assert torch.rand(2).equal(expected)
