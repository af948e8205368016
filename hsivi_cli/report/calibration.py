"""Plots of predictive distributions against what came, as PNG files in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .figures import new_figure, png

MOST = 6  # targets or classes in a figure
BINS = 10


def bands_png(draws: np.ndarray, y: np.ndarray, names: Sequence[str]) -> bytes:
    """Of each target the rows in the order of their medians, with 50 % and 95 % intervals and what
    came as dots.

    draws [N, S, D], y [N, D]
    """
    count = min(MOST, len(names))
    figure, axes = new_figure(1, count, 4.5)
    for d, ax in enumerate(axes[0]):
        low, lower, middle, upper, high = np.quantile(
            draws[..., d], [0.025, 0.25, 0.5, 0.75, 0.975], axis=1
        )
        order, at = middle.argsort(kind="stable"), np.arange(len(y))
        ax.fill_between(at, low[order], high[order], alpha=0.25, step="mid", label="95 %")
        ax.fill_between(at, lower[order], upper[order], alpha=0.5, step="mid", label="50 %")
        ax.plot(at, middle[order], drawstyle="steps-mid", label="median")
        ax.plot(at, y[order, d], ".", color="black", markersize=3, label="held out")
        ax.set(title=names[d], xlabel="rows by median")
    axes[0, 0].legend()
    return png(figure)


def calibration_png(told: np.ndarray, y: np.ndarray, names: Sequence[str]) -> bytes:
    """How often what is told comes: of each target the part of rows below a quantile by its level;
    of each class how often it came by its share of the draws, in ten bins. On the diagonal all is
    as told.

    told  [N, S, D] draws, or [N, C] shares
    y     [N, D], or [N, C] of 0 and 1
    """
    count = min(MOST, len(names))
    figure, axes = new_figure(1, count, 3.2)
    figure.set_layout_engine("compressed")  # "constrained" cuts the titles of square axes off
    for d, ax in enumerate(axes[0]):
        if told.ndim == 3:
            at = np.arange(1, 20) / 20
            came = (y[:, d] <= np.quantile(told[..., d], at, axis=1)).mean(1)
        else:
            number = np.minimum((told[:, d] * BINS).astype(int), BINS - 1)
            bins = [number == i for i in range(BINS) if (number == i).any()]
            at = [told[inside, d].mean() for inside in bins]
            came = [y[inside, d].mean() for inside in bins]
        ax.plot([0, 1], [0, 1], color="black", linewidth=0.6)
        ax.plot(at, came, "o-", markersize=3)
        ax.set(title=names[d], xlabel="told", ylabel="came", aspect="equal")
    return png(figure)
