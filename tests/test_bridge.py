"""The densities between base and target."""

import pytest
import torch

from hsivi_cli.density import targets
from hsivi_cli.density.bridge import Bridge, tempering_schedule
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


@pytest.mark.parametrize("kind", ["geometric", "diffusion"])
def test_rows_may_have_levels_of_their_own(kind):
    bridge = Bridge(targets.x_shape(), (1.0, 0.0), kind, 1.0)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).double()
    levels = torch.tensor([[1.0], [0.4], [0.0]]).double()
    for function in (bridge.log_prob, bridge.score):
        each = [function(x[i : i + 1], 0, levels[i].item()) for i in range(3)]
        torch.testing.assert_close(function(x, 0, levels), torch.cat(each))


@pytest.mark.parametrize("text", ["1,0.5", "1,0.2,0.5", "0.9,0.5,0", "1,0.5,0.1", "1,x,0"])
def test_a_tempering_schedule_out_of_order_is_refused(text):
    with pytest.raises(HsiviError, match=f"--lambdas '?{text}"):
        tempering_schedule(text, 2, "geometric")
