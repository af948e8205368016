"""Mass that a family has not found, told by particles down the tempering path."""

import pytest
import torch
from densities import touchy

from hsivi_cli.config import InferConfig
from hsivi_cli.density import targets
from hsivi_cli.density.elsewhere import missed, particles
from hsivi_cli.density.named import guarded
from hsivi_cli.density.networks import make_networks, resolved
from hsivi_cli.method.steps import rng


def modes(dim, apart, share=0.5):
    mean = torch.zeros(2, dim)
    mean[:, 0] = torch.tensor([-apart / 2, apart / 2])
    return targets.GaussianMixture(mean, 1.0, torch.tensor([share, 1 - share]))


@pytest.mark.parametrize("dim", [1, 3, 30])
def test_particles_of_a_gaussian_have_its_moments(dim):
    cov = 0.5 * torch.eye(dim) + 0.5
    target = targets.GaussianMixture(torch.full((1, dim), 2.0), cov)
    x = torch.cat([particles(target, 5.0, rng(seed, "particles")) for seed in range(10)])
    # 2,000 of which some have the same ancestor
    torch.testing.assert_close(x.mean(0), torch.full((dim,), 2.0), rtol=0, atol=0.25)
    torch.testing.assert_close(x.std(0), torch.ones(dim), rtol=0.2, atol=0)


def test_modes_further_apart_than_the_base_are_told_and_near_ones_are_not():
    cases = ((12.0, 0.5, True), (12.0, 0.2, True), (70.0, 0.5, True), (3.0, 0.5, False))
    for apart, share, told in cases:
        target = modes(4, apart, share)
        options = {"layers": 1, "width": 16, "bridge": "geometric", "frame": "none"}
        config = resolved(InferConfig(**options), target)
        found = missed(make_networks(config, target), config)
        assert (found is not None) == told
        if told:
            assert found.endswith("far apart are; try a --base-scale above 1 that reaches them")


def test_in_the_frame_of_a_gaussian_the_targets_own_is_advised():
    target = modes(4, 70.0)
    config = resolved(InferConfig(layers=1, width=16, bridge="geometric"), target)
    mode = (torch.tensor([-35.0, 0, 0, 0]), torch.eye(4))  # the one that the search has found
    found = missed(make_networks(config, target, mode), config)
    assert config.frame == "gaussian"
    assert found.endswith("try --frame none with a --base-scale above 1 that reaches them")


def test_a_posterior_of_one_mode_is_not_doubted():
    target = targets.diffusion_path(20)
    config = resolved(InferConfig(layers=1, width=16), target)
    assert missed(make_networks(config, target), config) is None


def test_a_function_that_fails_so_far_away_leaves_the_run_as_it_is():
    target = targets.Density(guarded(touchy), 3)
    config = resolved(InferConfig(layers=1, width=4, frame="none"), target)
    assert missed(make_networks(config, target), config) is None
