"""A mixture's density and score against torch's own, numerical derivatives, and its own draws."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from hsivi_cli.targets import GaussianMixture, grid_mixture


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def skewed():
    """Three components in 3-D with full covariances and unequal weights."""
    mean = torch.randn(3, 3, generator=rng(), dtype=torch.float64) * 2
    factor = torch.randn(3, 3, 3, generator=rng(1), dtype=torch.float64)
    cov = factor @ factor.mT + 0.1 * torch.eye(3, dtype=torch.float64)
    return mean, cov, torch.tensor([1.0, 2.0, 5.0])


def of_torch(mean, cov, weight):
    return MixtureSameFamily(Categorical(weight.double()), MultivariateNormal(mean, cov))


@pytest.mark.parametrize("alpha_bar", [None, 0.9, 0.3, 1e-3])
def test_the_density_at_a_level_is_torchs_mixture_of_the_noised_components(alpha_bar):
    mean, cov, weight = skewed()
    x = torch.randn(50, 3, generator=rng(2), dtype=torch.float64) * 2
    level = None if alpha_bar is None else torch.full((50,), alpha_bar, dtype=torch.float64)
    share = 1.0 if alpha_bar is None else alpha_bar
    noised = of_torch(share**0.5 * mean, share * cov + (1 - share) * torch.eye(3), weight)
    found = GaussianMixture(mean, cov, weight).log_prob(x, level)
    torch.testing.assert_close(found, noised.log_prob(x))


@pytest.mark.parametrize("alpha_bar", [None, 0.9, 0.3, 1e-3])
def test_the_score_is_the_gradient_of_the_log_density(alpha_bar):
    target = GaussianMixture(*skewed())
    x = torch.randn(50, 3, generator=rng(2), dtype=torch.float64).requires_grad_(True)
    level = None if alpha_bar is None else torch.full((50,), alpha_bar, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(target.log_prob(x, level).sum(), x)
    torch.testing.assert_close(target.score(x, level), gradient)


def test_eps_is_the_mean_noise_of_the_draws_that_lead_to_x():
    # E|noise - eps(x)|^2 is least at the true eps, and the residual is orthogonal to any function
    # of x (here x and eps themselves): 200,000 draws leave errors of about .003
    target = grid_mixture()
    x0 = target.sample(200_000, rng()).double()
    alpha_bar = torch.full((len(x0),), 0.98, dtype=torch.float64)
    noise = torch.randn(x0.shape, generator=rng(1), dtype=torch.float64)
    x = 0.98**0.5 * x0 + 0.02**0.5 * noise
    eps = target.eps(x, alpha_bar)
    left = noise - eps
    assert (left * x).mean().abs() < 0.01
    assert (left * eps).mean().abs() < 0.01
    assert left.square().mean() < 0.9  # x says much about the noise at this level


def test_levels_differ_from_sample_to_sample():
    target = grid_mixture()
    x = torch.randn(2, 2, generator=rng())
    both = target.eps(x, torch.tensor([0.9, 0.2]))
    for i, level in enumerate((0.9, 0.2)):
        alone = target.eps(x[i : i + 1], torch.tensor([level]))
        torch.testing.assert_close(both[i : i + 1], alone)


def test_draws_have_the_mixtures_mean_and_covariance():
    mean, cov, weight = skewed()
    draws = GaussianMixture(mean, cov, weight).sample(200_000, rng()).double()
    exact = of_torch(mean, cov, weight)
    share = weight.double() / weight.sum()
    gap = mean - exact.mean
    exact_cov = torch.einsum("m,mij->ij", share, cov + gap[:, :, None] * gap[:, None])
    size = exact_cov.diagonal().max().item()
    # five standard errors of a mean, and about that of a covariance's entries
    assert (draws.mean(0) - exact.mean).abs().max() < 5 * (size / 200_000) ** 0.5
    assert (draws.T.cov() - exact_cov).abs().max() < 5 * size * (2 / 200_000) ** 0.5 * 1.5


def test_the_same_seed_draws_the_same_samples():
    target = grid_mixture()
    assert torch.equal(target.sample(10, rng(3)), target.sample(10, rng(3)))
    assert not torch.equal(target.sample(10, rng(3)), target.sample(10, rng(4)))


def test_the_grid_has_its_modes_where_they_are_said_to_be():
    target = grid_mixture(5, 0.7, 0.08)
    assert target.mean.shape == (25, 2)
    assert target.mean.abs().max().item() == pytest.approx(1.4)
    at_mode = target.log_prob(torch.tensor([[0.7, -1.4]])).exp().item()
    assert at_mode == pytest.approx(1 / (25 * 2 * math.pi * 0.08**2), rel=1e-4)
    torch.testing.assert_close(
        target.score(torch.tensor([[0.7, -1.4]])), torch.zeros(1, 2), atol=1e-3, rtol=0
    )


def test_a_covariance_that_is_not_positive_definite_is_refused():
    with pytest.raises(ValueError, match="positive definite"):
        GaussianMixture(torch.zeros(1, 2), torch.zeros(2, 2))
