"""How good draws of a number are, row by row, against what came: smaller is better but of picp."""

from __future__ import annotations

import numpy as np

INTERVAL = (0.025, 0.975)
BINS = 10


def crps(draws: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The continuous ranked probability score [N], E|Y - y| - E|Y - Y'|/2, without bias.

    draws [N, S], y [N]
    """
    count = draws.shape[1]
    order = 2 * np.arange(1, count + 1) - count - 1
    apart = (order * np.sort(draws, 1)).sum(1) / (count * max(count - 1, 1))
    return np.abs(draws - y[:, None]).mean(1) - apart


def log_loss_of_draws(draws: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Minus the log density of y [N] by a kernel estimate from the draws [N, S].

    Silverman's width for the smaller of the draws' sd and their quartiles' / 1.34.
    """
    low, high = np.quantile(draws, [0.25, 0.75], axis=1)
    sd = draws.std(1)
    spread = np.where(high > low, np.minimum(sd, (high - low) / 1.34), sd)
    width = np.maximum(1.06 * spread * draws.shape[1] ** -0.2, 1e-9)
    exponent = -0.5 * ((y[:, None] - draws) / width[:, None]) ** 2
    top = exponent.max(1)
    density = np.log(np.exp(exponent - top[:, None]).mean(1)) + top
    return np.log(width * np.sqrt(2 * np.pi)) - density


def shares(draws: np.ndarray, y: np.ndarray, bins: int = BINS) -> np.ndarray:
    """The part of y [N] in each of the bins [bins] between the draws' own quantiles; 1 / bins where
    they are calibrated.
    """
    edges = np.quantile(draws, np.arange(1, bins) / bins, axis=1)
    return np.bincount((y > edges).sum(0), minlength=bins) / len(y)


def covered(draws: np.ndarray, y: np.ndarray) -> float:
    """The part of y [N] in the draws' middle 95 % (PICP)."""
    low, high = np.quantile(draws, INTERVAL, axis=1)
    return float(((low <= y) & (y <= high)).mean())


def of_numbers(draws: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """All of them as means over rows, by name; draws [N, S], y [N]."""
    return {
        "rmse": float(np.sqrt(np.mean((draws.mean(1) - y) ** 2))),
        "nll": float(log_loss_of_draws(draws, y).mean()),
        "crps": float(crps(draws, y).mean()),
        "qice": float(np.abs(shares(draws, y) - 1 / BINS).mean()),
        "picp": covered(draws, y),
    }


def class_shares(draws: np.ndarray) -> np.ndarray:
    """The part of the draws [N, S, C] whose largest coordinate is each class's [N, C]."""
    nearest = draws.argmax(2)
    return np.stack([(nearest == number).mean(1) for number in range(draws.shape[2])], 1)


def of_classes(draws: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Accuracy, log loss and Brier score of class_shares; draws [N, S, C], y [N, C] of 0 and 1.

    A share of no draw counts as half of one.
    """
    share = class_shares(draws)
    told = np.maximum((share * y).sum(1), 0.5 / draws.shape[1])
    return {
        "accuracy": float((share.argmax(1) == y.argmax(1)).mean()),
        "nll": float(-np.log(told).mean()),
        "brier": float(((share - y) ** 2).sum(1).mean()),
    }
