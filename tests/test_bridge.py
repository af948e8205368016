"""The densities between base and target, and the levels at which layers are judged."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from hsivi_cli.config import InferConfig
from hsivi_cli.density import targets
from hsivi_cli.density.bridge import Bridge, level_of, noised, tempering_schedule
from hsivi_cli.errors import HsiviError


@pytest.mark.parametrize("kind", ["geometric", "diffusion"])
def test_a_bridges_score_is_the_gradient_of_its_density(kind):
    bridge = Bridge(targets.x_shape(), (1.0, 0.6, 0.0), kind, 1.5 if kind == "geometric" else 1.0)
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    for k in range(3):
        (slope,) = torch.autograd.grad(bridge.log_prob(x, k).sum(), x)
        torch.testing.assert_close(bridge.score(x, k), slope)
    base = torch.distributions.Normal(0.0, bridge.base_scale).log_prob(x).sum(1)
    gap = bridge.log_prob(x, 2) - base
    torch.testing.assert_close(gap, gap[:1].expand(4))  # p_K is the base


def test_a_tempering_schedule_is_the_one_given_or_equal_steps():
    assert tempering_schedule("1,0.3,0", 2, "geometric") == (1, 0.3, 0)
    assert tempering_schedule("auto", 4, "geometric") == (1, 0.75, 0.5, 0.25, 0)
    assert tempering_schedule("auto", 2, "diffusion") == (1, 0.75, 0)  # sigma 0, 1/2, 1


@pytest.mark.parametrize("order", ["joint", "sequential"])
def test_a_level_falls_from_the_layer_above_to_its_own(order):
    config = InferConfig(steps=100, layers=2, order=order, bridge="diffusion")
    tempering = (1, 0.75, 0)  # sigma 0, 1/2, 1
    steps = range(100) if order == "joint" else range(50, 100)
    found = [level_of(config, tempering, 1, step) for step in steps]
    sigma = [math.sqrt(1 - level) for level in found]
    falling = round(0.5 * len(sigma))
    assert sigma[0] == pytest.approx(0.5) and set(found[falling:]) == {1}
    np.testing.assert_allclose(np.diff(sigma[:falling]), -0.5 / falling, rtol=1e-6)
    assert 0 < level_of(config, tempering, 2, 0) < 0.01  # x_K's own level has no signal
    assert level_of(config, tempering, 1, -3) == 0.75  # while fake scores warm up
    for other in ({"levels": "own"}, {"bridge": "geometric"}):
        assert level_of(replace(config, **other), tempering, 1, 0) == 1


def test_score_matching_begins_at_the_bases_level_in_every_layer():
    config = InferConfig(steps=100, layers=2, objective="sm", bridge="diffusion")
    found = [level_of(config, (1, 0.75, 0), 1, step) for step in range(100)]
    sigma = [math.sqrt(1 - level) for level in found]
    assert sigma[0] == pytest.approx(1, abs=1e-3) and sigma[35] == pytest.approx(0.5)
    assert found[69] < 1 and set(found[70:]) == {1}


def test_a_noised_layer_is_the_layers_samples_with_noise():
    generator = torch.Generator().manual_seed(0)
    mean, std = torch.tensor([3.0, -1.0]), torch.tensor([0.5, 0.1])
    x = mean + std * torch.randn(200_000, 2, generator=generator)
    x = 0.6 * x + 0.8 * torch.randn(200_000, 2, generator=generator)
    found = noised(mean, std, 0.36)
    for moment, expected in zip((x.mean(0), x.std(0)), found, strict=True):
        torch.testing.assert_close(moment, expected, rtol=0, atol=0.01)  # 5 standard errors
    assert noised(mean, std, 1)[1] is std


@pytest.mark.parametrize("text", ["1,0.5", "1,0.2,0.5", "0.9,0.5,0", "1,0.5,0.1", "1,x,0"])
def test_a_tempering_schedule_out_of_order_is_refused(text):
    with pytest.raises(HsiviError, match=f"--lambdas '?{text}"):
        tempering_schedule(text, 2, "geometric")
