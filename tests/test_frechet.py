"""Closed forms first: Gaussians' Fréchet distance, KID's expectation, manifolds that can be
counted by hand."""

import math

import numpy as np
import pytest
import torch

from hsivi_cli.files.places import embedded
from hsivi_cli.metrics.frechet import (
    Moments,
    MomentSum,
    frechet_distance,
    kernel_distance,
    merged,
    precision_recall,
    standard_error,
)
from hsivi_cli.metrics.statistics import load_statistics


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def moments(mean, cov, count=1000):
    return Moments(count, mean.double(), cov.double())


def random_cov(width, rank, seed):
    factor = torch.randn(width, rank, generator=rng(seed), dtype=torch.float64)
    return factor @ factor.T / rank


def moments_of_rows(rows):
    total = MomentSum()
    total.update(rows)
    return total.result()


def test_moments_equal_numpys_whatever_the_batches():
    rows = torch.randn(301, 7, generator=rng()) * 3 + 5
    total = MomentSum()
    for batch in rows.split([1, 100, 0, 150, 50]):
        total.update(batch)
    result = total.result()
    assert result.count == 301
    # two orders of summation in float64 on numbers of size 10
    np.testing.assert_allclose(result.mean, rows.double().numpy().mean(0), rtol=1e-13)
    np.testing.assert_allclose(result.cov, np.cov(rows.double().numpy(), rowvar=False), rtol=1e-11)


def test_moments_keep_a_small_spread_on_a_large_mean():
    offset = 1e7  # sum of squares would lose 14 of 16 digits
    rows = torch.randn(1000, 3, generator=rng(), dtype=torch.float64)
    total = MomentSum()
    for batch in (rows + offset).split(64):
        total.update(batch)
    expected = np.cov(rows.numpy(), rowvar=False)
    np.testing.assert_allclose(total.result().cov, expected, atol=1e-8)


def test_a_result_is_not_changed_by_later_updates():
    total = MomentSum()
    total.update(torch.randn(10, 2, generator=rng()))
    before = total.result()
    mean, cov = before.mean.clone(), before.cov.clone()
    total.update(torch.randn(10, 2, generator=rng(1)) + 3)
    assert torch.equal(before.mean, mean) and torch.equal(before.cov, cov)


def test_moments_of_one_row_and_of_wrong_shapes_are_refused():
    total = MomentSum()
    total.update(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="at least 2"):
        total.result()
    with pytest.raises(ValueError, match=r"\[B, D\]"):
        total.update(torch.zeros(3))


def test_distance_of_isotropic_gaussians_is_the_closed_form():
    # |m|^2 + D (s1 - s2)^2
    width, s1, s2 = 5, 2.0, 0.5
    a = moments(torch.zeros(width), s1**2 * torch.eye(width))
    b = moments(torch.full((width,), 3.0), s2**2 * torch.eye(width))
    assert frechet_distance(a, b) == pytest.approx(9 * width + width * (s1 - s2) ** 2, rel=1e-12)


def test_distance_of_commuting_covariances_is_that_of_their_spectra():
    turn = torch.linalg.qr(torch.randn(6, 6, generator=rng(), dtype=torch.float64)).Q
    s1, s2 = torch.rand(2, 6, generator=rng(1), dtype=torch.float64) + 0.1
    a = moments(torch.zeros(6), turn @ torch.diag(s1**2) @ turn.T)
    b = moments(torch.zeros(6), turn @ torch.diag(s2**2) @ turn.T)
    assert frechet_distance(a, b) == pytest.approx((s1 - s2).square().sum().item(), rel=1e-10)


def test_distance_of_general_2_by_2_covariances_is_the_closed_form():
    # for 2 x 2: tr sqrt(M) = sqrt(tr M + 2 sqrt(det M))
    c1, c2 = random_cov(2, 4, seed=3), random_cov(2, 4, seed=4)
    product = c1 @ c2
    root = math.sqrt(product.trace() + 2 * math.sqrt(torch.linalg.det(product)))
    expected = (c1.trace() + c2.trace()).item() - 2 * root
    zero = torch.zeros(2)
    assert frechet_distance(moments(zero, c1), moments(zero, c2)) == pytest.approx(
        expected, rel=1e-10
    )


def test_distance_equals_the_eigenvalues_of_the_product():
    # tr sqrt(C1 C2) = sum of square roots of the (real, positive) eigenvalues of the unsymmetric
    # product
    c1, c2 = random_cov(40, 80, seed=5), random_cov(40, 80, seed=6)
    mean = torch.randn(40, generator=rng(7), dtype=torch.float64)
    values = torch.linalg.eigvals(c1 @ c2).real
    expected = mean.square().sum() + c1.trace() + c2.trace() - 2 * values.sqrt().sum()
    got = frechet_distance(moments(mean, c1), moments(torch.zeros(40), c2))
    assert got == pytest.approx(expected.item(), rel=1e-9)


def test_a_rank_deficient_covariance_lies_at_no_distance_from_itself():
    cov = random_cov(50, 8, seed=8)
    a = moments(torch.ones(50), cov)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-10 * cov.trace().item())


def test_gaussians_in_orthogonal_subspaces_have_no_overlap():
    c1 = torch.diag(torch.tensor([2.0, 3.0, 0.0, 0.0]))
    c2 = torch.diag(torch.tensor([0.0, 0.0, 5.0, 7.0]))
    zero = torch.zeros(4)
    assert frechet_distance(moments(zero, c1), moments(zero, c2)) == pytest.approx(17, rel=1e-12)


def test_rank_deficient_distances_are_limits_of_full_rank_ones():
    c1, c2 = random_cov(20, 5, seed=9), random_cov(20, 7, seed=10)
    zero, nudge = torch.zeros(20), 1e-10 * torch.eye(20, dtype=torch.float64)
    exact = frechet_distance(moments(zero, c1), moments(zero, c2))
    values = torch.linalg.eigvals((c1 + nudge) @ (c2 + nudge)).real.clamp(min=0)
    near = (c1.trace() + c2.trace() - 2 * values.sqrt().sum()).item()
    assert exact == pytest.approx(
        near, abs=1e-3
    )  # the nudge moves a root by sqrt(1e-10) a direction


def test_a_set_of_equal_images_has_a_distance():
    a = moments_of_rows(torch.ones(5, 3))
    b = moments_of_rows(torch.tensor([[0.0, 1, 1], [2, 1, 1]]))
    assert frechet_distance(a, b) == pytest.approx(2.0)  # C_a = 0 and tr C_b = 2


def test_feature_widths_must_agree():
    with pytest.raises(ValueError, match="widths differ: 2 and 3"):
        frechet_distance(
            moments(torch.zeros(2), torch.eye(2)), moments(torch.zeros(3), torch.eye(3))
        )


def test_the_standard_error_of_one_gaussian_coordinate_is_the_closed_form():
    """Of (m - m_r)^2 + (s - s_r)^2, where m varies by s^2 / n and s by s^2 / 2n."""
    mean, sd, count = 1.5, 2.0, 400
    rows = mean + sd * torch.randn(400_000, 1, generator=rng(), dtype=torch.float64)
    seen = moments(torch.tensor([mean]), torch.tensor([[sd**2]]), count)
    real = moments(torch.zeros(1), torch.eye(1))
    expected = math.sqrt(4 * mean**2 * sd**2 / count + 4 * (sd - 1) ** 2 * sd**2 / (2 * count))
    assert standard_error(seen, real, rows) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("rank", [6, 4])
def test_the_standard_error_is_the_spread_of_distances_over_sets(rank):
    """Of features that are no Gaussian's, and a reference of any rank."""
    mix = torch.randn(6, 6, generator=rng(), dtype=torch.float64)
    real = moments(torch.zeros(6), random_cov(6, rank, seed=1))
    sets = [
        torch.rand(500, 6, generator=rng(seed), dtype=torch.float64).square() @ mix
        for seed in range(200)
    ]
    distances = torch.tensor([frechet_distance(moments_of_rows(rows), real) for rows in sets])
    told = [standard_error(moments_of_rows(rows), real, rows) for rows in sets[:20]]
    # a standard deviation of 200 numbers is good to 5 %
    assert torch.tensor(told).mean() == pytest.approx(distances.std().item(), rel=0.15)


def direct_mmd(x, y):
    """The unbiased estimate by loops over pairs, as its definition reads."""

    def k(u, v):
        return (float(u @ v) / len(u) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(u, v) for u in x for v in y) / (n * m)


def test_kernel_distance_of_whole_sets_is_the_definition():
    x = torch.randn(9, 4, generator=rng(), dtype=torch.float64)
    y = torch.randn(9, 4, generator=rng(1), dtype=torch.float64) + 1
    mean, deviation = kernel_distance(x, y, subsets=3, subset_size=1000, rng=rng())
    assert mean == pytest.approx(direct_mmd(x, y), rel=1e-10)
    assert deviation == pytest.approx(0, abs=1e-10)  # every subset is the whole set


def test_kernel_distance_of_equal_laws_is_zero_in_expectation():
    x, y = torch.randn(2, 4000, 8, generator=rng(2))
    shifted, _ = kernel_distance(x, y + 0.5, subsets=40, subset_size=100, rng=rng())
    mean, deviation = kernel_distance(x, y, subsets=40, subset_size=100, rng=rng())
    # disjoint enough subsets: four standard errors; a biased estimate would be off by about k(x,
    # x) / 100 = 0.16
    assert abs(mean) < 4 * deviation / math.sqrt(40)
    assert deviation < 0.1 < shifted


def test_kernel_distance_repeats_with_its_generator():
    x, y = torch.randn(2, 300, 5, generator=rng(3))
    first = kernel_distance(x, y, subsets=5, subset_size=50, rng=rng(7))
    assert first == kernel_distance(x, y, subsets=5, subset_size=50, rng=rng(7))
    assert first != kernel_distance(x, y, subsets=5, subset_size=50, rng=rng(8))


def test_precision_and_recall_of_equal_and_of_distant_sets():
    x = torch.randn(200, 3, generator=rng())
    assert precision_recall(x, x) == (1.0, 1.0)
    assert precision_recall(x, x + 100) == (0.0, 0.0)


def test_precision_and_recall_on_a_line_are_counted_by_hand():
    # first neighbour: every real ball has radius 1; fakes reach 0.5 from 0.25 and 0.75, and 89.25
    # from 90
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    fake = torch.tensor([[0.25], [0.75], [90.0]])
    precision, recall = precision_recall(real, fake[:2], neighbours=1)
    assert precision == 1.0  # both lie between 0 and 1
    assert recall == 0.5  # 0 and 1 lie in balls of radius 0.5, 2 and 3 do not
    precision, recall = precision_recall(real, fake, neighbours=1)
    assert precision == pytest.approx(2 / 3)
    assert recall == 1.0  # the outlier's ball reaches down to 0.75, over 1, 2 and 3


def test_precision_recall_is_the_same_in_chunks():
    real, fake = torch.randn(1500, 2, generator=rng()), torch.randn(1300, 2, generator=rng(1)) + 0.5
    precision, recall = precision_recall(real, fake)
    distances = torch.cdist(fake.double(), real.double())
    radius = torch.cdist(real.double(), real.double()).sort(1).values[:, 3]
    assert precision == pytest.approx((distances <= radius).any(1).double().mean().item())
    assert 0 < recall < 1 and 0 < precision < 1


def test_sets_too_small_for_a_manifold_are_refused():
    with pytest.raises(ValueError, match="more than 3 rows"):
        precision_recall(torch.zeros(3, 2), torch.zeros(10, 2))
    with pytest.raises(ValueError, match="at least 2 rows"):
        kernel_distance(torch.zeros(1, 2), torch.zeros(10, 2))


def test_moments_of_parts_are_those_of_the_whole():
    features = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double() * 5 + 100
    parts = []
    for rank in range(3):
        part = MomentSum()
        part.update(features[rank::3])
        parts.append(part.result())
    found = merged(parts)
    assert found.count == 50
    torch.testing.assert_close(found.mean, features.mean(0))
    torch.testing.assert_close(found.cov, features.T.cov())


def test_a_distance_of_shipped_features_stays_what_it_was():
    """Of the first 1,000 kept features to all training images; recorded on 2026-11-27."""
    reference, found = load_statistics(embedded("embedded:reference.npz")), MomentSum()
    for batch in reference.features[:1000].split(300):
        found.update(batch)
    distance = frechet_distance(found.result(), reference.moments)
    assert distance == pytest.approx(0.3016435204, rel=1e-6)
