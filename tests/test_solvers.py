"""Training-free solvers as chains: by their formulas, and read off schedulers by their steps."""

import diffusers
import pytest
import torch
from conftest import linear_table
from diffusers import DDIMScheduler
from walks import curved, start

from hsivi_cli.errors import HsiviError
from hsivi_cli.method import solvers
from hsivi_cli.method.chain import walk
from hsivi_cli.method.solvers import ddim_chain, ipndm_chain, solver_chain


def test_ipndm_is_ddims_transfer_of_adams_bashforth_averages():
    chain = ipndm_chain([0, 100, 250, 400, 600, 800], linear_table()[[0, 100, 250, 400, 600, 800]])
    weights = [[1], [3, -1], [23, -16, 5], [55, -59, 37, -9], [55, -59, 37, -9]]
    over = [1, 2, 12, 24, 24]
    x = start().double()
    predictions, alpha_bar = [], chain.alpha_bar
    for i, visit in enumerate(walk(curved, chain, x)):
        k = 5 - i
        torch.testing.assert_close(visit.x, x, rtol=1e-12, atol=1e-12)
        predictions.insert(0, curved(x, torch.full((4,), chain.time[k].item())))
        used = zip(weights[i], predictions, strict=False)
        eps = sum(w * p for w, p in used) / over[i]
        x0 = (x - (1 - alpha_bar[k]).sqrt() * eps) / alpha_bar[k].sqrt()
        x = alpha_bar[k - 1].sqrt() * x0 + (1 - alpha_bar[k - 1]).sqrt() * eps
        torch.testing.assert_close(visit.mean, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_bashforth_weights_integrate_polynomials_below_their_order(order):
    """The weights of predictions 0, 1, ... steps back give the mean of t^n over the step."""
    times = [0, 100, 200, 300, 400, 500]
    table = linear_table()
    base, chain = ddim_chain(times, table[times]), ipndm_chain(times, table[times], order)
    weights = chain.ce[1] / base.ce[1, 1]
    for n in range(order):
        # unit steps: the present at 0, predictions j - 1 steps back, the step goes to 1
        told = sum(weights[j].item() * (1.0 - j) ** n for j in range(1, 6))
        assert told == pytest.approx(1 / (n + 1), abs=1e-12)


def test_ipndm_of_order_1_is_ddim():
    times = [0, 100, 500]
    table = linear_table()
    one, ddim = ipndm_chain(times, table[times], 1), ddim_chain(times, table[times])
    assert torch.equal(one.ce, ddim.ce) and torch.equal(one.cx, ddim.cx)


# ---- read off a scheduler ------------------------------------------------------------------------


class LinearScheduler:
    """A scheduler of known coefficients, x <- 0.5 x + 2 eps - 0.25 earlier eps, and a fault."""

    init_noise_sigma = 1.0
    timesteps = torch.tensor([700, 400, 100])
    sigmas = torch.tensor([3.0, 1.0, 0.5, 0.0])

    def __init__(self, fault=lambda x: x):
        self.fault, self.earlier = fault, None

    def scale_model_input(self, x, t):
        return x

    def step(self, eps, t, x):
        x = 0.5 * x + 2 * eps - (0 if self.earlier is None else 0.25 * self.earlier)
        self.earlier = eps
        return type("Output", (), {"prev_sample": self.fault(x)})


def test_a_solvers_coefficients_are_read_off_its_steps():
    chain = solver_chain(LinearScheduler())
    assert chain.time.tolist() == [-1, 100, 400, 700]
    torch.testing.assert_close(chain.cx[1:], torch.full((3,), 0.5, dtype=torch.float64))
    told = torch.tensor([[2, -0.25, 0], [0, 2, -0.25], [0, 0, 2]], dtype=torch.float64)
    torch.testing.assert_close(chain.ce[1:, 1:], told, rtol=0, atol=1e-12)
    ratio = (1 - chain.alpha_bar).sqrt() / chain.alpha_bar.sqrt()
    torch.testing.assert_close(ratio.flip(0), LinearScheduler.sigmas.double())
    assert not chain.s0.any()


@pytest.mark.parametrize(
    "fault",
    [
        lambda x: x.clamp(-1, 1),
        lambda x: x + torch.randn_like(x),
        lambda x: x / x.abs().amax((1, 2, 3), keepdim=True),
        lambda x: x + 1,
    ],
    ids=["clipping", "noise", "thresholding", "bias"],
)
def test_a_scheduler_that_is_not_linear_is_refused(fault):
    torch.manual_seed(0)
    with pytest.raises(HsiviError, match="LinearScheduler is not a deterministic linear solver"):
        solver_chain(LinearScheduler(fault))


@pytest.mark.parametrize(
    ("kind", "options", "cause"),
    [
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "the noise"),
        ("DPMSolverMultistepScheduler", {"thresholding": True}, "thresholding"),
        ("UniPCMultistepScheduler", {"thresholding": True}, "thresholding"),
        ("DEISMultistepScheduler", {"thresholding": True}, "thresholding"),
        ("HeunDiscreteScheduler", {"clip_sample": True}, "clip_sample"),
        ("EulerAncestralDiscreteScheduler", {}, "the noise"),
    ],
)
def test_schedulers_that_clip_or_add_noise_are_no_chains(kind, options, cause):
    scheduler = getattr(diffusers, kind)(**options)
    scheduler.set_timesteps(4)
    told = f"{kind} is not a deterministic linear solver.* switch off {cause}.*or use ddim"
    with pytest.raises(HsiviError, match=told):
        solvers.solver_chain(scheduler)


def test_a_scheduler_that_keeps_no_levels_is_no_chain():
    scheduler = DDIMScheduler(clip_sample=True)
    scheduler.set_timesteps(4)
    with pytest.raises(HsiviError, match=r"DDIMScheduler keeps no sigmas.*use ddim"):
        solvers.solver_chain(scheduler)
