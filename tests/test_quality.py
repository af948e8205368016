"""What a run says of its samples without a truth: the bound."""

import pytest
import torch

from hsivi_cli.config import InferConfig
from hsivi_cli.density.family import Family
from hsivi_cli.density.quality import lower_bound
from hsivi_cli.density.targets import GaussianMixture


def base(dim, sd=1.0):
    """An untrained family, which is N(0, I), and N(0, sd^2 I)."""
    family = Family(dim, InferConfig(layers=1, start_scale=0.5, width=4, sines=0))
    return family, GaussianMixture(torch.zeros(1, dim), sd**2)


def test_the_lower_bound_of_a_normalised_density_is_below_zero_and_tight_when_fitted():
    family, target = base(2)
    found = lower_bound(family, target, 2000, 2000)
    assert -0.02 < found["lower_bound"] < 3 * found["standard_error"]
    assert found["importance_ess"] > 1900
    loose = lower_bound(family, target, 2000, 5)["lower_bound"]
    assert loose < found["lower_bound"] - 0.1


def test_the_bounds_standard_error_is_its_sd_over_seeds():
    family, target = base(2, 1.3)
    found = [lower_bound(family, target, 200, 10, seed) for seed in range(150)]
    values = torch.tensor([row["lower_bound"] for row in found])
    said = sum(row["standard_error"] for row in found) / len(found)
    assert said == pytest.approx(values.std().item(), rel=0.2)  # 150 seeds know a sd to 6 %
