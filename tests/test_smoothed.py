"""A density's VP levels from weighted points, against formulas."""

import pytest
import torch

from hsivi_cli.density import targets
from hsivi_cli.density.smoothed import MOST_LOST, Smoothed, endless, weighted_points
from hsivi_cli.errors import HsiviError
from hsivi_cli.method.steps import rng


def test_points_have_the_targets_moments_tails_included():
    for target in (targets.banana(), targets.x_shape(), targets.uneven_gaussians()):
        points, log_weight, log_mass = weighted_points(target, 0)
        weight, exact = log_weight.exp()[:, None], target.sample(200_000, rng(0, "truth"))
        mean = (weight * points).sum(0)
        sd = (weight * (points - mean).square()).sum(0).sqrt()
        torch.testing.assert_close(mean, exact.mean(0), rtol=0, atol=0.02)
        torch.testing.assert_close(sd, exact.std(0), rtol=0.02, atol=0)
        assert abs(log_mass) < 0.03  # these densities are normalised


@pytest.mark.parametrize("sigma", [0.3, 0.7, 0.95])
def test_levels_are_those_that_a_formula_gives(sigma):
    target = targets.x_shape()
    smooth = Smoothed(target)
    level = torch.full((500,), 1 - sigma**2)
    x = level[0].sqrt() * target.sample(500, rng(0, "x")) + sigma * torch.randn(500, 2)
    gap = smooth.log_prob(x, level) - target.log_prob(x, level)
    assert gap.abs().mean() < 0.03  # 2,000 points, the fewer the less the noise
    score = target.score(x, level)
    assert (smooth.score(x, level) - score).norm(dim=1).mean() < 0.06 * score.norm(dim=1).mean()


def test_rows_without_noise_are_the_targets_own_and_scores_are_gradients():
    target = targets.banana()
    smooth, x = Smoothed(target), torch.randn(6, 2)
    level = torch.tensor([1.0, 0.5, 1.0, 0.2, 0.9, 1.0])
    plain = level == 1
    for name in ("log_prob", "score"):
        mixed, own = getattr(smooth, name)(x, level), getattr(target, name)(x)
        torch.testing.assert_close(mixed[plain], own[plain])
        assert not torch.isclose(mixed[~plain], own[~plain]).any()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(smooth.log_prob(x, level).sum(), x)
    torch.testing.assert_close(smooth.score(x, level), gradient, rtol=1e-3, atol=1e-3)


def test_points_of_one_width_stand_for_modes_and_curves_and_not_for_a_funnel():
    named = {name: targets.TARGETS[name]() for name in ("banana", "25-gaussians", "funnel")}
    plain = {name: targets.Density(target.log_prob, 2) for name, target in named.items()}
    lost = {name: Smoothed(target).lost() for name, target in plain.items()}
    assert 0 < lost["banana"] < lost["25-gaussians"] < MOST_LOST < lost["funnel"]


def test_a_line_has_levels_too():
    normal = targets.Density(lambda x: -(x[:, 0] - 1).square() / 8, 1)
    x, level = torch.linspace(-3, 3, 7)[:, None], torch.full((7,), 0.5)
    expected = -(x - 0.5**0.5) / (0.5 * 4 + 0.5)  # N(sqrt(1/2), 5/2)
    torch.testing.assert_close(Smoothed(normal).score(x, level), expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("log_prob", [lambda x: 0 * x[:, 0], lambda x: -x[:, 0].square()])
def test_a_density_that_does_not_end_is_called_improper(log_prob):
    with pytest.raises(HsiviError, match=r"does not end within 1000 of 0: it is improper"):
        Smoothed(targets.Density(log_prob, 2))
    assert "does not end" in endless(targets.Density(log_prob, 2), 0)
    assert endless(targets.banana(), 0) is None


@pytest.mark.parametrize(("centre", "sd"), [(0.3, 1e-3), (400.0, 0.5)])
def test_a_density_that_points_do_not_cover_is_told_of(centre, sd):
    target = targets.GaussianMixture(torch.full((1, 2), centre), sd**2)
    with pytest.raises(HsiviError, match=r"of 2000 points: scale and move .*--bridge geometric"):
        Smoothed(target)
