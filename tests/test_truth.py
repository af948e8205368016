"""Distances between clouds of points, where their values are known."""

import pytest
import torch

from hsivi_cli.density.truth import jensen_shannon, sliced_w1


def test_sliced_w1_of_a_shift_is_its_mean_projection():
    x = torch.randn(5000, 2, generator=torch.Generator().manual_seed(0))
    # the mean of |cos| over directions is 2 / pi
    assert sliced_w1(x, x + torch.tensor([1.0, 0.0])) == pytest.approx(2 / torch.pi, rel=1e-3)
    assert sliced_w1(x, x) == 0


def test_jensen_shannon_is_log_2_of_sets_apart_and_0_of_equal_ones():
    x = torch.rand(5000, 2, generator=torch.Generator().manual_seed(0))
    assert jensen_shannon(x, x) == pytest.approx(0, abs=1e-12)
    assert jensen_shannon(x, x - 1) == pytest.approx(0.6931, abs=1e-3)
    assert jensen_shannon(x, x + 100) == pytest.approx(0.6931, abs=1e-3)  # outside counts
