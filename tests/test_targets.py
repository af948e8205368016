"""A mixture's density and score against torch's own, numerical derivatives, and its own draws."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from hsivi_cli.density import targets
from hsivi_cli.density.datasets import waveform
from hsivi_cli.density.posteriors import logistic_regression, neural_regression
from hsivi_cli.density.targets import TARGETS, Density, GaussianMixture, grid_mixture
from hsivi_cli.density.truth import jensen_shannon


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


# ---- targets of inference ------------------------------------------------------------------------

PLANE = [name for name in TARGETS if name != "diffusion-path"]


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def models():
    """Posteriors of small random data, one a Bayesian model."""
    inputs, labels = waveform(30, rng())
    return {
        "logistic": logistic_regression(inputs, labels),
        "neural": neural_regression(numbers(20, 3), numbers(20, seed=1), hidden=4),
        "path": targets.diffusion_path(),
    }


@pytest.mark.parametrize("name", [*PLANE, "logistic", "neural", "path"])
def test_a_score_is_the_central_difference_of_the_log_density(name):
    target = TARGETS[name]() if name in PLANE else models()[name]
    x = numbers(5, target.dim) * (1 if name in PLANE else 0.1)
    step = 1e-5 * torch.eye(target.dim, dtype=torch.float64)
    slope = torch.stack([(target.log_prob(x + e) - target.log_prob(x - e)) / 2e-5 for e in step], 1)
    # the difference errs by 1e-10 of the third derivative, and by rounding of log p over 1e-5
    torch.testing.assert_close(target.score(x), slope, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", [n for n in PLANE if n != "funnel"])  # its neck is too fine
def test_a_figures_density_integrates_to_one_and_its_draws_follow_it(name):
    target, reach, side = TARGETS[name](), 18 if name == "banana" else 7, 600
    line = ((torch.arange(side, dtype=torch.float64) + 0.5) / side * 2 - 1) * reach
    grid = torch.cartesian_prod(line, line)
    mass = torch.cat([target.log_prob(part) for part in grid.split(30_000)]).exp()
    mass = mass * (2 * reach / side) ** 2
    assert mass.sum() == pytest.approx(1, abs=1e-3)
    x = target.sample(40_000, rng(1)).double()
    mean = mass @ grid
    sd = (mass @ (grid - mean).square()).sqrt()
    # 5 standard errors; those of a square are at most 4 times the square here
    assert ((x.mean(0) - mean).abs() < 5 * sd / 200).all()
    torch.testing.assert_close(x.var(0), sd.square(), rtol=0.07, atol=0)
    from_grid = grid[torch.multinomial(mass, 40_000, replacement=True, generator=rng(2))]
    both = target.sample(40_000, rng(3)).double()
    # two exact sets differ by some 60^2 / 8 * 2 / 40,000 = .02
    assert jensen_shannon(x, from_grid, reach=4.5) < 0.03 + jensen_shannon(x, both, reach=4.5)


@pytest.mark.parametrize("name", ["checkerboard", "circles", "swiss-roll"])
def test_a_figure_at_a_level_is_the_density_of_its_noised_draws(name):
    target, level = TARGETS[name](), torch.tensor(0.7, dtype=torch.float64)
    at = numbers(20, 2) * 1.5
    draws = target.sample(200_000, rng()).double() * level.sqrt()
    spread = (1 - level).sqrt()
    kernel = -torch.cdist(at, draws).square() / (2 * spread**2)
    expected = kernel.logsumexp(1) - math.log(len(draws)) - (2 * math.pi * spread**2).log()
    # a mean of 200,000 kernels of width .55: within 2 % of the density
    found = target.log_prob(at, level.expand(20))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.03)


@pytest.mark.parametrize("name", [n for n in PLANE if TARGETS[n]().levels])
@pytest.mark.parametrize("alpha_bar", [0.0, 1e-9, 1e-6])
def test_a_figure_that_is_all_noise_is_the_base(name, alpha_bar):
    target, x = TARGETS[name](), (1.5 * numbers(20, 2)).float()
    level = torch.full((20,), alpha_bar)
    base = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
    # what is left of the target moves x by at most sqrt(alpha_bar) |x0|, of some 4.5
    torch.testing.assert_close(target.log_prob(x, level), base, rtol=0, atol=0.02)
    torch.testing.assert_close(target.score(x, level), -x, rtol=0, atol=0.02)


def test_the_funnels_first_coordinate_and_the_width_of_the_second():
    x = targets.funnel().sample(40_000, rng())
    assert x[:, 0].std().item() == pytest.approx(3, rel=0.02)
    z = x[:, 1] / (x[:, 0] / 2).exp()
    assert z.std().item() == pytest.approx(1, rel=0.02)


def test_a_path_is_euler_steps_of_the_drift_and_twenty_observations_of_sd_a_tenth():
    target, x = targets.diffusion_path(), 0.5 * numbers(6, 100)

    def observed(x):  # the log density less that of the steps
        before = torch.cat([torch.zeros(len(x), 1), x[:, :-1]], 1)
        mean = before + 0.01 * 10 * before * (1 - before**2) / (1 + before**2)
        return target.log_prob(x) - torch.distributions.Normal(mean, 0.1).log_prob(x).sum(1)

    # where was it seen, if the rest is normal in every fifth coordinate and flat in the others?
    x.requires_grad_()
    (slope,) = torch.autograd.grad(observed(x).sum(), x)
    seen = (x + 0.1**2 * slope).detach()
    at = torch.arange(4, 100, 5)
    torch.testing.assert_close(seen[:, at], seen[:1, at].expand(6, -1), rtol=0, atol=1e-9)
    hidden = torch.ones(100, dtype=torch.bool).index_fill(0, at, False)
    torch.testing.assert_close(slope[:, hidden], torch.zeros(6, 80).double(), rtol=0, atol=1e-9)
    # the drift leads from 0 to one of the wells at -1 and 1, where its noise has an sd near .3
    assert 0.6 < seen[0, at][-10:].abs().mean() < 1.4


def test_a_log_density_of_the_wrong_shape_or_without_gradient_is_refused():
    x = numbers(3, 2)
    with pytest.raises(ValueError, match=r"one number a point, \[3\], not \[3, 2\]"):
        Density(lambda x: x.square(), 2).score(x)
    with pytest.raises(ValueError, match="not float"):
        Density(lambda x: 1.0, 2).score(x)
    for flat in (lambda x: x.detach().sum(1), lambda x: torch.zeros(3, requires_grad=True)):
        with pytest.raises(ValueError, match="no gradient in x"):
            Density(flat, 2).score(x)


def test_a_score_can_be_differentiated_where_its_point_can():
    x = numbers(3, 2).requires_grad_()
    target = targets.banana()
    (second,) = torch.autograd.grad(target.score(x).sum(), x)
    step = torch.full((2,), 1e-5, dtype=torch.float64)
    with torch.no_grad():
        slope = (target.score(x + step) - target.score(x - step)) / 2e-5
    torch.testing.assert_close(second, slope, rtol=1e-6, atol=1e-6)  # the Hessian is symmetric
    assert not target.score(x.detach()).requires_grad
