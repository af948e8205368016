"""The flow that layers begin with, against the densities that it should end at."""

import torch

from hsivi_cli.config import InferConfig
from hsivi_cli.density import targets
from hsivi_cli.density.bridge import Bridge
from hsivi_cli.density.even import even_normals
from hsivi_cli.density.networks import make_networks, resolved
from hsivi_cli.density.start import paths
from hsivi_cli.method.steps import rng


def test_the_flow_carries_the_base_to_every_levels_own_gaussian():
    mean, cov = torch.tensor([0.8, -0.5]), torch.tensor([[1.0, 0.6], [0.6, 0.8]])
    bridge = Bridge(targets.GaussianMixture(mean[None], cov), (1, 0.75, 0.0), "diffusion", 1.0)
    states = paths(bridge, even_normals(4000, 2, rng(0, "base")))
    for x, level in zip(states, bridge.tempering, strict=True):
        expected = level * cov + (1 - level) * torch.eye(2)
        torch.testing.assert_close(x.mean(0), level**0.5 * mean, rtol=0, atol=0.04)
        torch.testing.assert_close(x.T.cov(), expected, rtol=0, atol=0.03)


def test_the_flow_shares_mass_out_as_modes_have_it():
    bridge = Bridge(targets.uneven_gaussians(), (1, 0.0), "diffusion", 1.0)
    x = paths(bridge, even_normals(4000, 2, rng(0, "base")))[0]
    assert abs((x[:, 0] > 0).float().mean() - 0.2) < 0.01


def test_layers_that_follow_the_flow_hold_the_modes_shares_before_the_first_step():
    target = targets.uneven_gaussians()
    options = {"layers": 2, "width": 32, "depth": 1, "sines": 3, "steps": 1}
    share = {}
    for path_steps in (0, 300):
        config = resolved(InferConfig(**options, path_steps=path_steps), target)
        x = make_networks(config, target).family.sample(20_000)
        share[path_steps] = (x[:, 0] > 0).float().mean().item()
    assert abs(share[300] - 0.2) < 0.03 < abs(share[0] - 0.2)
