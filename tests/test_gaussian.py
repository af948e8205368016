"""The nearest Gaussian: that of a Gaussian exactly, and a whitening that changes no density."""

import math

import pytest
import torch

from hsivi_cli.density.datasets import waveform
from hsivi_cli.density.gaussian import Affine, curvature, fit_gaussian, laplace
from hsivi_cli.density.posteriors import logistic_regression
from hsivi_cli.density.targets import Density, GaussianMixture
from hsivi_cli.errors import HsiviError


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


MEAN = torch.tensor([30.0, -2.0, 0.5])
COV = torch.tensor([[100.0, 9.0, 0.0], [9.0, 1.0, 0.0], [0.0, 0.0, 0.01]])


def test_newtons_mode_and_curvature_of_a_gaussian_are_its_own():
    target = GaussianMixture(MEAN[None], COV)
    mean, factor, ended = laplace(target, torch.zeros(3), 1.0)
    assert ended
    torch.testing.assert_close(mean, MEAN, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(factor @ factor.T, COV, rtol=1e-3, atol=1e-4)  # float32 scores


@pytest.mark.parametrize("full", [True, False])
def test_the_nearest_gaussian_has_the_mean_and_the_precisions_diagonal(full):
    # reverse KL: the full one is the target, the diagonal one has the variances 1 / precision_ii
    target = GaussianMixture(MEAN[None], COV)
    mean, factor = fit_gaussian(target, torch.zeros(3), full, rng(), steps=800)
    cov = COV if full else (1 / COV.inverse().diagonal()).diag()
    sd = cov.diagonal().sqrt()
    # the gradient's noise is 0 at the full one; at the other its last steps leave about .01 sd
    torch.testing.assert_close((mean - MEAN) / sd, torch.zeros(3), rtol=0, atol=0.05)
    torch.testing.assert_close(factor @ factor.T / torch.outer(sd, sd), cov / torch.outer(sd, sd),
                               rtol=0, atol=0.05)  # fmt: skip


def test_a_start_where_the_density_curves_upward_still_climbs():
    two = GaussianMixture(torch.tensor([[-3.0], [3.0]]), 1.0)  # x = 0.1 lies in the valley
    mean, factor, ended = laplace(two, torch.tensor([0.1]), 1.0)
    assert ended
    assert mean.item() == pytest.approx(3, abs=0.01)
    assert factor.item() == pytest.approx(1, abs=0.01)


def test_a_density_without_second_derivatives_begins_at_the_scale_given():
    flat = Density(lambda x: -x.abs().sum(1), 2)
    _, values, _ = curvature(flat, torch.ones(1, 2), 0.5)
    torch.testing.assert_close(values, torch.full((2,), 4.0).double())
    mean, factor = fit_gaussian(flat, torch.ones(2), True, rng(), 0.5, steps=800)
    # E|x| under N(0, s^2) is s sqrt(2 / pi): the best s is sqrt(pi / 2)
    assert factor.diagonal().abs().tolist() == pytest.approx([math.sqrt(math.pi / 2)] * 2, rel=0.1)
    assert mean.abs().max() < 0.1


def test_a_whitened_target_has_the_targets_density_and_score():
    target = logistic_regression(*waveform(30, rng()))
    factor = 0.3 * torch.randn(22, 22, generator=rng(1))
    white = Affine(target, torch.randn(22, generator=rng(2)), factor)
    y = torch.randn(4, 22, generator=rng(3)).requires_grad_()
    expected = target.log_prob(white.out(y)) + factor.slogdet()[1]
    torch.testing.assert_close(white.log_prob(y), expected)
    (slope,) = torch.autograd.grad(expected.sum(), y)
    torch.testing.assert_close(white.score(y), slope, rtol=1e-4, atol=1e-4)  # sums of 30 rows


def test_a_whitenings_determinant_is_computed_once(monkeypatch):
    calls, slogdet = [], torch.linalg.slogdet
    monkeypatch.setattr(torch.linalg, "slogdet", lambda m: calls.append(m) or slogdet(m))
    white = Affine(GaussianMixture(MEAN[None], COV), torch.zeros(3), 2 * torch.eye(3))
    values = [white.log_prob(torch.ones(1, 3)) for _ in range(3)]  # as at NUTS's every leapfrog
    assert len(calls) == 1
    inside = white.target.log_prob(2 * torch.ones(1, 3))
    torch.testing.assert_close(values[2], inside + 3 * math.log(2))


def test_a_density_that_does_not_end_is_told_of():
    def flat_along_one(x):
        return -x[:, 0].square() / 2 + 0 * x[:, 1:].sum(1)

    for log_prob in (flat_along_one, lambda x: 0 * x.sum(1)):
        with pytest.raises(HsiviError, match=r"bound runs away: .* the density is improper"):
            fit_gaussian(Density(log_prob, 3), torch.zeros(3), True, rng())


@pytest.mark.parametrize(
    "log_prob", [lambda x: x.sum(1), lambda x: x.square().sum(1), lambda x: (x**4).sum(1)]
)
@pytest.mark.parametrize("full", [True, False])
def test_a_density_that_rises_and_rises_is_told_of(log_prob, full):
    with pytest.raises(HsiviError, match=r"runs away: its log density rises .* is improper"):
        fit_gaussian(Density(log_prob, 3), 0.1 * torch.ones(3), full, rng())


def test_a_mode_far_from_the_mass_is_no_density_without_end():
    # a narrow peak, 60 of its sds from the rest
    peak = GaussianMixture(torch.tensor([[0.0] * 3, [3.0] * 3]), torch.eye(3), torch.ones(2))
    peak.variance = torch.tensor([[0.05**2] * 3, [1.0] * 3]).double()
    mean, _ = fit_gaussian(peak, torch.zeros(3), True, rng())
    assert mean.isfinite().all()
