"""The layers: their walk, and what they are before training."""

import torch

from hsivi_cli.config import InferConfig
from hsivi_cli.density import targets
from hsivi_cli.density.family import Family
from hsivi_cli.density.networks import make_networks, resolved


def test_a_walk_keeps_x_and_adds_the_networks_shift_and_noise_of_its_own_sds():
    for dim in (2, 3):
        family = Family(dim, InferConfig(layers=2, noise_dim=2, width=8, depth=1, sines=1))
        for parameter in family.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
        rng = torch.Generator().manual_seed(2)
        x, noise, u = family.start(5, rng)
        visits = list(family.visits(x, noise, u))
        expected = x
        for k, e in zip((2, 1), noise, strict=True):
            found = family[k].net(torch.cat([expected, u[:, k - 1]], 1))
            step = family[k].log_scale.exp() * e
            if dim == 2:  # in the plane sds are functions too
                std = family[k].log_scale.exp() * (6 * (found[:, 2:4] / 6).tanh()).exp()
                step = std * e
                step[:, 1] += std[:, 1] * found[:, 4] * e[:, 0]
            # start_scale .5 of base_scale 1
            expected = 0.75**0.5 * expected + found[:, :dim] + step
        torch.testing.assert_close(visits[-1].below, expected)
        assert [visit.k for visit in visits] == [2, 1]


def test_untrained_marginals_are_the_base_and_untrained_samples_the_best_gaussian():
    config = InferConfig(layers=3, base_scale=2.0, start_scale=1.2, width=4, sines=0)
    states = Family(2, config).marginals(50_000)
    # 4 standard errors of a sd of 2
    torch.testing.assert_close(states.std(1), torch.full((4, 2), 2.0), rtol=0, atol=0.026)
    mean, cov = torch.tensor([5.0, -3.0, 0.0]), torch.diag(torch.tensor([9.0, 1.0, 0.04]))
    target = targets.GaussianMixture(mean[None], cov)
    config = resolved(InferConfig(layers=2, width=4, bridge="geometric"), target)
    x = make_networks(config, target).ema.sample(50_000)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.1)  # the fit is within .01 sd
    torch.testing.assert_close(x.T.cov(), cov, rtol=0.05, atol=0.05)
