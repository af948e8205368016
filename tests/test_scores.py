"""Scores of draws, against closed forms of a normal."""

import math

import numpy as np
import pytest

from hsivi_cli.tables import scores

RNG = np.random.default_rng(0)
NORMAL = RNG.standard_normal((400, 2000))
Y = np.linspace(-2, 2, 400)


def test_crps_of_a_normals_draws_is_the_closed_form():
    density = np.exp(-(Y**2) / 2) / math.sqrt(2 * math.pi)
    below = np.array([0.5 * (1 + math.erf(y / math.sqrt(2))) for y in Y])
    exact = Y * (2 * below - 1) + 2 * density - 1 / math.sqrt(math.pi)
    found = scores.crps(NORMAL, Y)
    assert abs((found - exact).mean()) < 0.002  # 400 rows of 2,000 draws: some .001
    np.testing.assert_allclose(found, exact, atol=0.1)


def test_crps_of_few_draws_has_no_bias_and_of_one_is_the_distance():
    few = RNG.standard_normal((200_000, 3))
    assert scores.crps(few, np.zeros(200_000)).mean() == pytest.approx(
        (math.sqrt(2) - 1) / math.sqrt(math.pi), abs=0.005
    )
    np.testing.assert_allclose(scores.crps(np.array([[2.0]]), np.array([5.0])), 3)


def test_the_log_loss_is_the_normals_own():
    found = scores.log_loss_of_draws(NORMAL, Y)
    exact = 0.5 * Y**2 + 0.5 * math.log(2 * math.pi)
    assert abs((found - exact).mean()) < 0.03  # the kernel widens it by .02
    spike = scores.log_loss_of_draws(np.ones((1, 9)), np.array([1.0]))
    assert np.isfinite(spike).all()


def test_draws_of_the_rows_own_law_are_calibrated_and_narrow_ones_are_not():
    y = RNG.standard_normal(400)
    good, narrow = (scores.of_numbers(sd * NORMAL, y) for sd in (1, 0.3))
    assert good["picp"] == pytest.approx(0.95, abs=0.03) and good["qice"] < 0.02
    assert narrow["picp"] < 0.6 and narrow["qice"] > 0.05
    assert good["crps"] < narrow["crps"] and good["nll"] < narrow["nll"]
    assert good["rmse"] == pytest.approx(1, abs=0.1)


def test_classes_are_the_largest_coordinates_of_draws():
    draws = np.array([[[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.1]]])
    np.testing.assert_array_equal(scores.class_shares(draws), [[0.75, 0.25]])
    found = scores.of_classes(draws, np.array([[0, 1]]))
    assert found["accuracy"] == 0 and found["brier"] == pytest.approx(2 * 0.75**2)
    assert found["nll"] == pytest.approx(-math.log(0.25))
    certain = scores.of_classes(draws[:, :1], np.array([[0, 1]]))
    assert certain["nll"] == pytest.approx(math.log(2))  # of one draw, none: half of one
