"""Plots of predictive distributions: what is drawn where, read off matplotlib's own figure."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from hsivi_cli.report import calibration

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def whole_figures(monkeypatch):
    """The functions give their figures, as they are before they become bytes."""
    monkeypatch.setattr(calibration, "png", lambda figure: figure)


def lines(ax):
    return {line.get_label(): line for line in ax.lines}


def test_bands_are_in_the_order_of_medians_with_what_came_at_its_row():
    middle = np.array([3.0, -1.0, 2.0])
    draws = middle[:, None, None] + RNG.standard_normal((3, 5000, 2))
    y = np.array([[3.5, 0], [-1.5, 0], [2.25, 0]])
    figure = calibration.bands_png(draws, y, ["a", "b"])
    ax, other = figure.axes
    assert (ax.get_title(), other.get_title()) == ("a", "b")
    np.testing.assert_allclose(lines(ax)["median"].get_ydata(), [-1, 2, 3], atol=0.08)
    np.testing.assert_array_equal(lines(ax)["held out"].get_ydata(), [-1.5, 2.25, 3.5])
    wide = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert wide.min() == pytest.approx(-1 - 1.96, abs=0.2)
    assert wide.max() == pytest.approx(3 + 1.96, abs=0.2)


def test_calibrated_draws_lie_on_the_diagonal_and_narrow_ones_across_it():
    draws, y = RNG.standard_normal((2000, 500, 1)), RNG.standard_normal((2000, 1))
    ax = calibration.calibration_png(draws, y, ["a"]).axes[0]
    told, came = ax.lines[-1].get_data()
    np.testing.assert_allclose(came, told, atol=0.04)  # 4 standard errors
    ax = calibration.calibration_png(0.2 * draws, y, ["a"]).axes[0]
    assert ax.lines[-1].get_ydata()[0] > 0.3  # below the 5 % quantile


@pytest.mark.parametrize("count", [1, 3])
def test_the_names_of_targets_lie_within_the_figure(count):
    told = RNG.random((50, count))
    names = [f"target {i}" for i in range(count)]
    figure = calibration.calibration_png(told, np.round(told), names)
    FigureCanvasAgg(figure).draw()
    assert all(ax.title.get_window_extent().y1 < figure.bbox.y1 for ax in figure.axes)


def test_classes_come_as_often_as_their_shares_tell():
    share = RNG.random(20_000)
    told = np.column_stack([share, 1 - share])
    first = RNG.random(20_000) < share**2  # less often than told
    came = np.column_stack([first, ~first]).astype(float)
    figure = calibration.calibration_png(told, came, ["no", "yes"])
    assert [ax.get_title() for ax in figure.axes] == ["no", "yes"]
    at, often = figure.axes[0].lines[-1].get_data()
    np.testing.assert_allclose(at, (np.arange(10) + 0.5) / 10, atol=0.01)
    np.testing.assert_allclose(often, np.asarray(at) ** 2, atol=0.05)
