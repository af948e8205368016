"""Distances of draws to a truth, where their values are known."""

import pytest
import torch

from hsivi_cli.density.truth import (
    errors,
    exact_truth,
    jensen_shannon,
    largest_of_normals,
    sliced_w1,
)


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


def normal(count, seed=0):
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))


def test_errors_are_those_of_a_known_shift_and_stretch():
    # the same draws, moved by half a sd and stretched by 1.2 along the first coordinate
    x = normal(10_000)
    truth = exact_truth(x)
    sd = x.std(0)
    moved = (x - x.mean(0)) * torch.tensor([1.2, 1.0]) + x.mean(0) + 0.5 * sd
    found = errors(moved, truth)
    assert found["mean_error"] == pytest.approx(0.5, abs=1e-4)
    assert found["sd_error"] == pytest.approx(0.2, abs=1e-4)
    assert found["correlation_error"] == pytest.approx(0, abs=1e-4)
    # two standard errors of .01 sd each; the second coordinate's are the smaller
    assert found["mean_z"] == pytest.approx(0.5 / 0.01 / 2**0.5, rel=0.02)
    assert found["js"] > 0.02 and found["w1"] > 0.2
    mirrored = errors(x * torch.tensor([1.0, -1.0]) + 0.9 * x[:, :1], truth)
    assert mirrored["correlation_error"] > 0.5


def test_a_coordinate_alone_has_no_correlation():
    found = errors(normal(500)[:, :1], exact_truth(normal(500, 1)[:, :1]))
    assert "correlation_error" not in found and "js" not in found


def test_an_outlier_of_the_truth_does_not_set_the_ruler():
    truth, draws = normal(20_000), normal(20_000, 1) * torch.tensor([1.0, 0.7])
    plain = errors(draws, exact_truth(truth))["js"]
    truth[0] = torch.tensor([0.0, 1e4])
    # the bins' edges move by a rank, which is noise
    assert errors(draws, exact_truth(truth))["js"] == pytest.approx(plain, rel=0.05)
    # nor does where the truth lies, or the width of its other coordinate
    place, unit = torch.tensor([50.0, 0.0]), torch.tensor([0.01, 30.0])
    elsewhere = errors(place + unit * draws, exact_truth(place + unit * truth))["js"]
    assert elsewhere == pytest.approx(plain, rel=0.05)


def test_draws_beyond_the_ruler_count_in_its_outside_cell():
    truth, draws = exact_truth(normal(20_000)), normal(20_000, 1)
    floor = errors(draws, truth)["js"]
    draws[:2000] += 100  # a tenth of them: JS is that of shares (.98, .02) and (.882, .118)
    p, q = torch.tensor([0.98, 0.02]), torch.tensor([0.882, 0.118])
    middle = (p + q) / 2
    expected = (torch.xlogy(p, p / middle).sum() + torch.xlogy(q, q / middle).sum()) / 2
    # the cells within give up a tenth, evenly, which adds nothing; noise of the shares is .003
    assert errors(draws, truth)["js"] - floor == pytest.approx(expected.item(), abs=0.006)


def test_perfect_draws_average_the_largest_of_so_many_normals():
    assert largest_of_normals(1) == pytest.approx((2 / torch.pi) ** 0.5)
    assert largest_of_normals(2) == pytest.approx(2 / torch.pi**0.5)
    z = torch.randn(40_000, 31, generator=torch.Generator().manual_seed(0)).abs().amax(1)
    assert largest_of_normals(31) == pytest.approx(z.mean().item(), abs=0.01)  # 4 standard errors
    draws = torch.randn(400, 2, 500, 5, generator=torch.Generator().manual_seed(1))
    found = [errors(one, exact_truth(other)) for one, other in draws]
    average = sum(row["mean_z"] for row in found) / len(found)
    assert found[0]["mean_z_perfect"] == pytest.approx(average, abs=0.12)
