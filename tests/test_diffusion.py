"""The diffusion of a table's target: its posterior against Bayes' rule, its predictions."""

import numpy as np
import pytest

from hsivi_cli.tables.diffusion import TOP, levels, posterior, r0_of, r0_slope, target_of


@pytest.mark.parametrize(("alpha_bar", "below"), [(0.2, 0.6), (TOP, 0.3), (0.97, 0.99), (0.5, 1.0)])
def test_the_posterior_is_bayes_rule_by_numbers(alpha_bar, below):
    """p(y' | y_k, y_0) over a grid of y', from the two normals that the forward process is."""
    f, y0, yk = 1.3, -0.4, 0.8
    to = posterior(alpha_bar, below)
    mean = to.g0 * y0 + to.g1 * yk + to.g2 * f
    if below == 1:
        assert mean == pytest.approx(y0) and to.variance == 0
        return
    at = np.linspace(-12, 12, 400_001)

    def log_normal(x, mean, variance):
        return -0.5 * (x - mean) ** 2 / variance

    def forward(y, ratio):  # of the process around f, from a level to `ratio` times it
        return np.sqrt(ratio) * y + (1 - np.sqrt(ratio)) * f

    a = alpha_bar / below
    log = log_normal(at, forward(y0, below), 1 - below) + log_normal(yk, forward(at, a), 1 - a)
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    found = (weight * at).sum()
    assert mean == pytest.approx(found, abs=1e-6)
    assert to.variance == pytest.approx((weight * (at - found) ** 2).sum(), rel=1e-6)
    assert to.g0 + to.g1 + to.g2 == pytest.approx(1)


def test_levels_turn_by_equal_angles_from_the_data_to_all_but_noise():
    for calls in (1, 5, 1000):
        alpha_bar = levels(calls)
        assert alpha_bar[0] == 1 and alpha_bar[-1] == pytest.approx(TOP)
        turned = np.diff(np.arccos(np.sqrt(alpha_bar)))
        np.testing.assert_allclose(turned, turned[0], rtol=1e-6)


@pytest.mark.parametrize("prediction", ["sample", "epsilon", "v_prediction"])
def test_predictions_stand_for_r0_and_their_slope_is_by_differences(prediction):
    r0, noise, alpha_bar = np.array([0.3, -2.0]), np.array([1.1, 0.4]), 0.35
    r = np.sqrt(alpha_bar) * r0 + np.sqrt(1 - alpha_bar) * noise
    output = target_of(r0, noise, alpha_bar, prediction)
    np.testing.assert_allclose(r0_of(output, r, alpha_bar, prediction), r0)
    moved = r0_of(output + 0.5, r, alpha_bar, prediction) - r0
    np.testing.assert_allclose(moved / 0.5, r0_slope(alpha_bar, prediction))


def test_of_a_standard_normal_v_is_one_whatever_the_state():
    r0, noise = np.random.default_rng(0).standard_normal((2, 100_000))
    v = target_of(r0, noise, 0.3, "v_prediction")
    r = np.sqrt(0.3) * r0 + np.sqrt(0.7) * noise
    covariance = np.cov(v, r)
    np.testing.assert_allclose(covariance, np.eye(2), atol=0.02)  # 4 standard errors
