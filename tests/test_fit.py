"""Coefficients fitted to a longer walk's samples."""

import pytest
import torch
from diffusers import DDPMScheduler

from hsivi_cli.method import chain as chains
from hsivi_cli.method.fit import Coefficients, fit_coefficients
from hsivi_cli.method.solvers import ddim_chain
from hsivi_cli.models.spacings import solver

SCHEDULER = DDPMScheduler(1000)
TABLE = SCHEDULER.alphas_cumprod.double()
SCALE = torch.zeros(1, 1)


def gaussian_eps(variance):
    """The noise prediction of N(0, variance): sigma x / (alpha_bar variance + sigma^2)."""

    def network(x, time, labels=None, alpha_bar=None):
        alpha_bar = alpha_bar[:, None]
        return (1 - alpha_bar).sqrt() * x / (alpha_bar * variance + 1 - alpha_bar)

    return network


def wavy_eps(x, time, labels=None, alpha_bar=None):
    """A network that hears the time and the labels, and is not linear."""
    labels = 0 if labels is None else labels[:, None]
    return torch.sin(2 * x + time[:, None] / 300 + labels)


@pytest.mark.parametrize("name", ["ddim-linspace", "unipc-leading", "dpm++3-lu"])
@pytest.mark.parametrize("moved", [False, True])
def test_the_fits_own_walk_is_the_chains(name, moved):
    model = Coefficients(solver(name, 4, SCHEDULER, TABLE), torch.device("cpu"))
    if moved:
        draw = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw)
    x, labels = torch.randn(6, 3), torch.arange(6)
    with torch.no_grad():
        own = model.sample(wavy_eps, x, labels)
    theirs = chains.sample(wavy_eps, model.moved(), x, None, SCALE, labels)
    torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-4)  # float32, in another order


def test_one_call_is_fitted_to_a_gaussians_exact_map():
    variance, top = 0.3, 500
    network = gaussian_eps(variance)
    chain = ddim_chain([0, top], TABLE[[0, top]])
    x = torch.randn(512, 1, generator=torch.Generator().manual_seed(0))
    wanted = 0.7 * x  # whatever is linear in x is within reach of one call
    before = (chains.sample(network, chain, x, None, SCALE) - wanted).square().mean()
    found = fit_coefficients(
        network, chain, x, wanted, None, 300, torch.Generator().manual_seed(1), rate=1e-2
    )
    after = (chains.sample(network, found, x, None, SCALE) - wanted).square().mean()
    assert before > 1e-3 > 1e2 * after  # zero but for Adam's last steps
    assert torch.equal(found.alpha_bar, chain.alpha_bar) and torch.equal(found.s0, chain.s0)


def test_no_steps_leave_the_chain_as_it_is():
    chain = solver("deis", 3, SCHEDULER, TABLE)
    x = torch.randn(8, 2)
    found = fit_coefficients(wavy_eps, chain, x, x, None, 0, torch.Generator())
    for name in ("time", "cx", "ce"):
        assert torch.equal(getattr(found, name), getattr(chain, name))


def test_labels_go_with_their_pairs():
    heard = []

    def network(x, time, labels=None, alpha_bar=None):
        heard.append((x.detach(), labels))
        return x * 0

    x = torch.arange(40.0)[:, None]
    chain = ddim_chain([0, 500], TABLE[[0, 500]])
    fit_coefficients(network, chain, x, x, torch.arange(40), 3, torch.Generator().manual_seed(0))
    assert len(heard) == 3
    assert all(torch.equal(x[:, 0].long(), labels) for x, labels in heard)
