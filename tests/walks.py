"""Smooth functions of (x, time) as networks, and their walks down a chain and a scheduler."""

import torch

from hsivi_cli.method import chain as chains
from hsivi_cli.method import schedule

BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")


def curved(x, time, labels=None, alpha_bar=None):
    """A smooth network that is neither linear in x nor constant in time."""
    return torch.sin(1.3 * x + time[0].double() / 300) + 0.3 * x


def model(x, time):
    return torch.sin(1.3 * x + time / 300) + 0.3 * torch.sin(x)


def walk(chain, prediction, x, noise=None):
    """The chain's sample, over the model as one of this prediction type."""

    def network(x, time, labels, alpha_bar):
        return schedule.to_eps(model(x, time[0]), x, alpha_bar, prediction)

    return chains.sample(network, chain, x, noise, torch.zeros(1, 1, 1, 1))


def trajectory(scheduler, x):
    """diffusers' own walk, over the raw model output."""
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t), t, x).prev_sample
    return x


def start():
    return torch.randn(16, 5, 1, 1, generator=torch.Generator().manual_seed(0))


def assert_walks_agree(found, told, chain):
    """Within float32: an x0 or v prediction becomes an eps rounded to 6e-8, which x0 multiplies
    by sigma / sqrt(alpha_bar) of the first time: 157 for linear betas, 20,000 for cosine ones.
    """
    ratio = schedule.noise_to_signal(chain.alpha_bar[-1:]).item()
    close = 1e-5 + 5e-7 * ratio
    torch.testing.assert_close(found, told, rtol=close, atol=close * (1 + told.abs().max().item()))


def images(teacher, count=2):
    """x [count, C, H, W] and times [count] to ask a teacher at."""
    torch.manual_seed(1)
    return torch.randn(count, *teacher.shape), torch.tensor([3, 40])[:count]
