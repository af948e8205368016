"""The layers: their walk, and what they are before training."""

import torch

from hsivi_cli.config import InferConfig
from hsivi_cli.density import targets
from hsivi_cli.density.family import Family, free_chain
from hsivi_cli.density.rounds import make_networks, resolved
from hsivi_cli.method.chain import walk


def test_the_walk_without_a_schedule_keeps_x_and_adds_network_and_noise():
    family = Family(3, InferConfig(layers=2, noise_dim=2, width=8, depth=1, sines=1))
    for parameter in family.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    rng = torch.Generator().manual_seed(2)
    x, noise, u = family.start(5, rng)
    expected = x
    for k, e in zip((2, 1), noise, strict=True):
        inputs = torch.cat([expected, u[:, k - 1]], 1)
        kept = 0.75**0.5 * expected  # start_scale .5 of base_scale 1
        expected = kept + family[k].net(inputs) + family[k].log_scale.exp() * e
    last = list(family.visits(x, noise, u))[-1]
    torch.testing.assert_close(last.mean + family[1].log_scale.exp() * noise[-1], expected)
    states = list(walk(lambda x, *rest: 0 * x, free_chain(2, 1.0), x, noise, family.log_scale))
    torch.testing.assert_close(states[-1].mean, x + family[2].log_scale.exp() * noise[0])


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
