"""The conditional normals against torch's own."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from hsivi_cli.density.normal import Normal

N = 6


def made(dim, tilted):
    rng = torch.Generator().manual_seed(0)
    mean, std, tilt = (torch.randn(N, dim, generator=rng).double() for _ in range(3))
    std = std.abs() + 0.2
    factor = torch.diag_embed(std)
    if tilted:
        factor[:, 1, 0] = tilt[:, 0]
    return Normal(mean, std, tilt[:, 0] if tilted else None), factor, rng


@pytest.mark.parametrize(("dim", "tilted"), [(1, False), (2, False), (2, True), (5, False)])
def test_densities_scores_and_draws_are_those_of_a_multivariate_normal(dim, tilted):
    normal, factor, rng = made(dim, tilted)
    truth = MultivariateNormal(normal.mean, scale_tril=factor)
    noise = torch.randn(N, dim, generator=rng).double()
    x = normal.draw(noise).requires_grad_()
    torch.testing.assert_close(x, normal.mean + (factor @ noise[:, :, None])[:, :, 0])
    torch.testing.assert_close(normal.log_prob(x), truth.log_prob(x))
    torch.testing.assert_close(normal.pairs(x), truth.log_prob(x[:, None]))
    weight = torch.rand(N, generator=rng).double()
    mixture = (weight * truth.log_prob(x[:, None]).exp()).mean(1).log()
    torch.testing.assert_close(normal.mixture_log_prob(x, weight), mixture)
    (gradient,) = torch.autograd.grad(mixture.sum(), x, retain_graph=True)
    score, near = normal.mixture_score(x, weight)
    torch.testing.assert_close(score, gradient)
    part = weight * truth.log_prob(x[:, None]).exp()
    torch.testing.assert_close(near, (part / part.sum(1, keepdim=True)).detach())
    torch.testing.assert_close(normal.precision(), truth.precision_matrix)
    (score,) = torch.autograd.grad(truth.log_prob(x).sum(), x)
    torch.testing.assert_close(normal.eps(noise), -score)


@pytest.mark.parametrize("tilted", [False, True])
def test_noise_adds_to_the_covariance_and_shrinks_the_mean(tilted):
    normal, factor, rng = made(2, tilted)
    for ratio in (torch.rand(N, 1, generator=rng).double(), torch.tensor(0.3), torch.tensor(1.0)):
        noised, r = normal.at(ratio), ratio.double().expand(N, 1)
        own = torch.diag_embed(noised.std)
        if tilted:
            own[:, 1, 0] = noised.tilt
        expected = r[..., None] * factor @ factor.mT + (1 - r[..., None]) * torch.eye(2).double()
        torch.testing.assert_close(own @ own.mT, expected)
        torch.testing.assert_close(noised.mean, r.sqrt() * normal.mean)


def test_a_normal_that_lies_along_a_line_stays_finite_without_noise():
    normal = Normal(torch.zeros(1, 2), torch.tensor([[0.5, 1e-4]]), torch.tensor([7.0]))
    assert normal.at(torch.tensor([[1.0]])).std[0, 1] == pytest.approx(1e-4)


@pytest.mark.parametrize("tilted", [False, True])
def test_pairs_far_off_the_origin_are_as_near_as_float32_allows(tilted):
    normal, factor, rng = made(2, tilted)
    far = Normal(*((t + 100 * (i == 0)).float() for i, t in enumerate((normal.mean, normal.std))),
                 normal.tilt.float() if tilted else None)  # fmt: skip
    x = 3 * torch.randn(5, 2, generator=rng) + 100
    exact = MultivariateNormal(normal.mean + 100, scale_tril=factor)
    # squares of size 10^3 err by some 10^-4
    expected = exact.log_prob(x.double()[:, None])
    torch.testing.assert_close(far.pairs(x).double(), expected, rtol=1e-3, atol=2e-2)
