"""Data sets that lie within packages or are simulated, each as inputs [N, D] and outputs [N]."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .packages import quietly


def waveform(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Breiman's waveforms (1984): inputs [count, 21] and labels [count], 1 for the first of the
    three classes.

    Each row is a random mean of two of three triangular waves, plus a standard normal.
    """
    at = torch.arange(1, 22)
    waves = torch.stack([(6 - (at - peak).abs()).clamp(min=0) for peak in (11, 15, 7)]).float()
    pairs = torch.tensor([[0, 1], [0, 2], [1, 2]])
    kind = torch.randint(3, (count,), generator=rng)
    share = torch.rand(count, 1, generator=rng)
    one, other = waves[pairs[kind]].unbind(1)
    inputs = share * one + (1 - share) * other + torch.randn(count, 21, generator=rng)
    return inputs, (kind == 0).float()


def breast_cancer() -> tuple[Tensor, Tensor]:
    """569 patients' 30 measures, and whether the tumour is benign."""
    data = quietly("sklearn.datasets").load_breast_cancer()
    return standard(data.data), torch.as_tensor(data.target)


def digits() -> tuple[Tensor, Tensor]:
    """1,797 images' 61 pixels that vary, and whether the digit is odd."""
    data = quietly("sklearn.datasets").load_digits()
    varies = data.data.std(0) > 0
    return standard(data.data[:, varies]), torch.as_tensor(data.target % 2)


def diabetes() -> tuple[Tensor, Tensor]:
    """442 patients' 10 measures, and the disease's progress, of mean 0 and sd 1."""
    data = quietly("sklearn.datasets").load_diabetes()
    return standard(data.data), standard(data.target)


def abalone() -> tuple[Tensor, Tensor]:
    """4,177 shells' sex as two indicators and 7 measures, and their rings, of mean 0 and sd 1."""
    shells = quietly("sklego.datasets").load_abalone(as_frame=True)
    sex, rings = shells.pop("sex"), shells.pop("rings")
    inputs = np.column_stack([sex == "M", sex == "F", shells.to_numpy(float)])
    return standard(inputs), standard(rings.to_numpy(float))


def standard(values: np.ndarray) -> Tensor:
    """Columns of mean 0 and sd 1, float32."""
    values = torch.as_tensor(values, dtype=torch.float64)
    return ((values - values.mean(0)) / values.std(0)).float()
