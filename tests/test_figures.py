"""Plots of inference: what is drawn where, read off matplotlib's own figure."""

import numpy as np
import pytest
import torch

from hsivi_cli.report import figures

PLACE = torch.tensor([1.0, -0.5])


@pytest.fixture(autouse=True)
def whole_figures(monkeypatch):
    """The functions give their figures, as they are before they become bytes."""
    monkeypatch.setattr(figures, "png", lambda figure: figure)


def cloud(place, count=4000, sd=0.2):
    return place + sd * torch.randn(count, 2, generator=torch.Generator().manual_seed(0))


def brightest(ax):
    """Where an image is brightest, in the coordinates of its axes."""
    (image,) = ax.images
    values, (left, right, bottom, top) = image.get_array(), image.get_extent()
    row, column = np.unravel_index(values.argmax(), values.shape)
    if image.origin == "upper":
        row = len(values) - 1 - row
    x, y = (column + 0.5) / values.shape[1], (row + 0.5) / len(values)
    return left + x * (right - left), bottom + y * (top - bottom)


def densest(ax):
    """Where a two-dimensional histogram is highest."""
    (mesh,) = ax.collections
    corners, values = mesh.get_coordinates(), mesh.get_array()
    row, column = np.unravel_index(values.argmax(), values.shape)
    return tuple((corners[row, column] + corners[row + 1, column + 1]) / 2)


def test_layers_lie_under_their_densities_from_the_base_to_the_samples_unmirrored():
    places = [PLACE, PLACE / 2, 0 * PLACE]  # of x_0, x_1 and x_2
    marginals = torch.stack([cloud(place) for place in places])
    figure = figures.layers_png(marginals, lambda x, k: -8 * (x - places[k]).square().sum(1))
    above, below = np.array(figure.axes).reshape(2, 3)
    assert [ax.get_title() for ax in (*above, *below)] == ["p_2", "p_1", "p_0", "x_2", "x_1", "x_0"]
    for column, place in enumerate(reversed(places)):
        assert brightest(above[column]) == pytest.approx(place.tolist(), abs=0.03)
        assert brightest(below[column]) == pytest.approx(place.tolist(), abs=0.25)  # a histogram's


def test_methods_lie_beside_each_other_unmirrored():
    places = {"hsivi": PLACE, "nuts": -PLACE}
    figure = figures.densities_png({name: cloud(place) for name, place in places.items()})
    for ax, (name, place) in zip(figure.axes, places.items(), strict=True):
        assert ax.get_title() == name
        assert brightest(ax) == pytest.approx(place.tolist(), abs=0.25)


def test_pairs_lie_below_the_diagonal_and_the_truths_mirrored_above_it():
    figure = figures.pairs_png(cloud(PLACE), cloud(3 * PLACE))
    (_, above), (below, _) = np.array(figure.axes).reshape(2, 2)
    assert densest(below) == pytest.approx(PLACE.tolist(), abs=0.2)
    assert densest(above) == pytest.approx((3 * PLACE.flip(0)).tolist(), abs=0.2)


def test_a_band_holds_the_half_and_nine_tenths_of_its_coordinates():
    even = torch.linspace(0, 100, 2001)  # its quantiles are 100 times their levels
    samples, truth = torch.stack([even, -even], 1), torch.stack([2 * even, -even], 1)
    (ax,) = figures.band_png(samples, truth).axes
    wide, narrow = (set(c.get_paths()[0].vertices[:, 1].round(3)) for c in ax.collections)
    assert wide == {5, 95, -95, -5} and narrow == {25, 75, -75, -25}
    median, *lines = (line.get_ydata() for line in ax.lines if len(line.get_ydata()))
    np.testing.assert_allclose(median, [50, -50], atol=1e-3)
    expected = [[2 * q, q - 100] for q in (5, 25, 50, 75, 95)]
    np.testing.assert_allclose(lines, expected, atol=1e-3)
