"""What a run says of its samples without a truth: the bound, and when its weights say more."""

import sys
from types import ModuleType

import pytest
import torch

from hsivi_cli.config import InferConfig
from hsivi_cli.density.family import Family
from hsivi_cli.density.quality import HIGHEST_K, between_seeds, doubt, lower_bound, tail_of
from hsivi_cli.density.quality import in_words as words
from hsivi_cli.density.targets import GaussianMixture


def in_words(found):
    return words(found, {"mean": 0.01, "sd": 0.002})


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


def test_weights_far_apart_have_a_tail_too():
    assert tail_of(torch.linspace(-1e4, 1e4, 2000).double())["pareto_k"] > HIGHEST_K


def test_the_bounds_standard_error_is_its_sd_over_seeds():
    family, target = base(2, 1.3)
    found = [lower_bound(family, target, 200, 10, seed) for seed in range(150)]
    values = torch.tensor([row["lower_bound"] for row in found])
    said = sum(row["standard_error"] for row in found) / len(found)
    assert said == pytest.approx(values.std().item(), rel=0.2)  # 150 seeds know a sd to 6 %


def test_above_the_plane_the_bound_is_told_to_be_loose_and_no_ess_is_claimed():
    family, target = base(20)  # the truth is a bound of 0 and weights of 1
    found = lower_bound(family, target, 2000, 500)
    assert found["lower_bound"] < -5 and "importance_ess" not in found
    # what half of the mixing samples give is lower still: that is how a loose bound is known
    half = lower_bound(family, target, 2000, 250)["lower_bound"]
    assert found["half_mixing"] == pytest.approx(half, abs=0.2)
    assert "loose" in in_words(found) and "ESS" not in in_words(found)
    assert doubt(found) is None


def test_in_the_plane_the_weights_tell_how_much_of_the_target_is_covered():
    found = lower_bound(*base(2), 2000, 2000)
    assert "ESS 19" in in_words(found) and "loose" not in in_words(found)
    assert found["pareto_k"] < 0.7 and doubt(found) is None
    # weights of N(0, 5^2 I) under N(0, I) have no variance: their tail's index is 1 - 1/25, of
    # which 2,000 normals see less
    wide = lower_bound(*base(2, 5.0), 2000, 2000)
    assert wide["importance_ess"] < 200
    assert wide["pareto_k"] == pytest.approx(1 - 1 / 25, abs=0.3)
    assert "the samples miss parts of the target" in doubt(wide)


@pytest.mark.parametrize("arviz", [None, ModuleType("arviz")], ids=["missing", "of another time"])
def test_without_arviz_the_bound_is_there_without_paretos_k(monkeypatch, arviz):
    monkeypatch.setitem(sys.modules, "arviz", arviz)
    found = lower_bound(*base(2), 200, 200)
    assert "pareto_k" not in found and "importance_ess" in found
    assert "ESS" in in_words(found) and doubt(found) is None


def test_two_seeds_differ_by_chance_alone():
    family, _ = base(2)
    for count in (400, 40_000):
        found = between_seeds(family, family.sample(count, 3), 3)
        # the worse of two gaps, of sd (2 / count)^1/2 and (1 / count)^1/2
        assert 0.05 < found["mean"] * count**0.5 < 5 and 0.03 < found["sd"] * count**0.5 < 4
    assert "means 0.01 sds apart, sds 0.2%;" in in_words(lower_bound(family, base(2)[1], 200, 200))
