"""Normals that fill the plane evenly."""

import pytest
import torch

from hsivi_cli.density.even import even_normals
from hsivi_cli.method.steps import rng


@pytest.mark.parametrize("dim", [1, 2])
def test_even_normals_are_normal_and_their_moments_nearer_than_chance(dim):
    for seed in range(5):
        x = even_normals(1000, dim, rng(seed, "even"))
        assert x.shape == (1000, dim) and x.isfinite().all()
        # 1,000 draws by chance differ by .03 and .02
        torch.testing.assert_close(x.mean(0), torch.zeros(dim), rtol=0, atol=0.01)
        torch.testing.assert_close(x.std(0), torch.ones(dim), rtol=0, atol=0.015)


def test_each_point_alone_is_a_standard_normal():
    x = torch.stack([even_normals(3, 2, rng(seed, "even"))[1] for seed in range(4000)])
    torch.testing.assert_close(x.mean(0), torch.zeros(2), rtol=0, atol=0.06)
    torch.testing.assert_close(x.std(0), torch.ones(2), rtol=0, atol=0.05)
