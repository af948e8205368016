"""The diffusion of a table's target around its prior mean f(x) [CARD, Han et al. 2022].

    y_k = sqrt(ab_k) y_0 + (1 - sqrt(ab_k)) f + sigma_k noise,    sigma_k = sqrt(1 - ab_k)

in units in which y_0 - f has covariance I, so that y_K ~ N(f, I). In r_k = y_k - f it is a VP
diffusion of the residual, r_k = sqrt(ab_k) r_0 + sigma_k noise, and that is what the layers see.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TOP = 1e-4  # alpha_bar of the state that drawing begins with; at 0 a noise tells no y_0


def levels(calls: int) -> np.ndarray:
    """alpha_bar of the states 0..K [K+1]: from 1, the data, to TOP, all but noise alone.

    ab_k = cos^2(k/K arccos(sqrt(TOP))): sqrt(ab) and sigma turn by equal angles.
    """
    return np.cos(np.arange(calls + 1) / calls * np.arccos(np.sqrt(TOP))) ** 2


@dataclass(frozen=True)
class Posterior:
    """q(y_{k-1} | y_k, y_0): a normal of mean g0 y_0 + g1 y_k + g2 f and of this variance.

    In r the mean is g0 r_0 + g1 r_k, as g0 + g1 + g2 = 1.
    """

    g0: float
    g1: float
    g2: float
    variance: float


def posterior(alpha_bar: float, below: float) -> Posterior:
    """Of the state at alpha_bar, for the one at `below`, the next level towards the data:

    a  = alpha_bar / below
    g0 = (1 - a) sqrt(below) / (1 - alpha_bar)
    g1 = (1 - below) sqrt(a) / (1 - alpha_bar)
    g2 = 1 + (sqrt(alpha_bar) - 1) (sqrt(a) + sqrt(below)) / (1 - alpha_bar)
    variance = (1 - below) / (1 - alpha_bar) (1 - a)
    """
    a, sigma2 = alpha_bar / below, 1 - alpha_bar
    return Posterior(
        g0=(1 - a) * np.sqrt(below) / sigma2,
        g1=(1 - below) * np.sqrt(a) / sigma2,
        g2=1 + (np.sqrt(alpha_bar) - 1) * (np.sqrt(a) + np.sqrt(below)) / sigma2,
        variance=(1 - below) / sigma2 * (1 - a),
    )


def target_of(r0: np.ndarray, noise: np.ndarray, alpha_bar: float, prediction: str) -> np.ndarray:
    """What trees are to predict at a level: r_0, its noise, or v = sqrt(ab) noise - sigma r_0.

    v is what is left of both beside sqrt(ab) r_0 + sigma noise, the state: where r_0 is a standard
    normal it is one too, whatever the state, and there is nothing to predict.
    """
    if prediction == "sample":
        return r0
    if prediction == "epsilon":
        return noise
    return np.sqrt(alpha_bar) * noise - np.sqrt(1 - alpha_bar) * r0


def r0_of(output: np.ndarray, r: np.ndarray, alpha_bar: float, prediction: str) -> np.ndarray:
    """The r_0 that a prediction at the state r stands for."""
    if prediction == "sample":
        return output
    sigma = np.sqrt(1 - alpha_bar)
    if prediction == "epsilon":
        return (r - sigma * output) / np.sqrt(alpha_bar)
    return np.sqrt(alpha_bar) * r - sigma * output


def r0_slope(alpha_bar: float, prediction: str) -> float:
    """How far r_0 moves with a prediction: d r_0 / d output."""
    if prediction == "sample":
        return 1.0
    sigma = np.sqrt(1 - alpha_bar)
    return -sigma if prediction == "v_prediction" else -sigma / np.sqrt(alpha_bar)
