"""Layers against diffusers' DDIM and closed formulas; walks, levels and observing as defined."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import gauss_hermite, linear_table
from walks import curved

from hsivi_cli.errors import HsiviError
from hsivi_cli.method.chain import (
    draw_levels,
    eta_shares,
    observe,
    sample,
    std_of,
    walk,
    with_noise_share,
)
from hsivi_cli.method.solvers import ddim_chain, ipndm_chain

UNTRAINED = torch.zeros(1, 1, dtype=torch.float64)


def make(times, share=0.0, table=None):
    """The DDIM chain at these times of linear betas, with a noise share."""
    table = linear_table() if table is None else table
    return with_noise_share(ddim_chain(times, table[times]), share)


def start(count=4, width=3, layers=0):
    torch.manual_seed(0)
    x, *noise = torch.randn(1 + layers, count, width, dtype=torch.float64)
    return x, noise


# ---- layers against diffusers --------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(("precision", "close"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_an_untrained_layer_is_diffusers_ddim_step(eta, precision, close):
    """diffusers keeps alphas_cumprod and its roots in float32: 1e-6. Given float64, 1e-12."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(clip_sample=False)
    table = scheduler.alphas_cumprod.double()
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(precision)
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.to(precision)
    scheduler.set_timesteps(5)  # 800 600 ... 0: its own prev = t - 200 is exact here
    times = [-1, *scheduler.timesteps.flip(0).tolist()]
    assert times == [-1, 0, 200, 400, 600, 800]
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), table[times[1:]]])
    chain = with_noise_share(ddim_chain(times, alpha_bar), eta_shares(alpha_bar, eta))
    x, noise = start(layers=5)
    log_scale = torch.zeros(1, 3, dtype=torch.float64)
    for visit in walk(curved, chain, x, noise, log_scale):
        t = times[visit.k]
        eps = curved(visit.x, torch.full((4,), float(t)))
        fresh = noise[5 - visit.k]
        theirs = scheduler.step(eps, t, visit.x, eta=eta, variance_noise=fresh).prev_sample
        std = std_of(chain, torch.full((4,), visit.k), log_scale)
        # the walk feeds float32 times to the network: exact for integers
        torch.testing.assert_close(visit.mean + std * fresh, theirs, rtol=close, atol=close)


def test_full_renoising_keeps_only_x0():
    chain = make([0, 200, 700], 1.0)
    x, noise = start(layers=1)
    for visit in walk(curved, chain, x, noise, UNTRAINED):
        alpha_bar = chain.alpha_bar[visit.k]
        eps = curved(visit.x, torch.full((4,), chain.time[visit.k].item()))
        x0 = (visit.x - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
        below = chain.alpha_bar[visit.k - 1]
        torch.testing.assert_close(visit.mean, below.sqrt() * x0, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(chain.s0[visit.k], (1 - below).sqrt())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_layers_mean_is_the_methods_formula(share):
    chain = make([0, 100, 500], share)
    x, noise = start(layers=1)
    for visit in walk(curved, chain, x, noise, UNTRAINED):
        k = visit.k
        alpha_bar, below = chain.alpha_bar[k], chain.alpha_bar[k - 1]
        eps = curved(visit.x, torch.full((4,), chain.time[k].item()))
        x0 = (visit.x - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
        s0 = share * (1 - below).sqrt()
        told = below.sqrt() * x0 + (1 - below - s0**2).sqrt() * eps
        torch.testing.assert_close(visit.mean, told, rtol=1e-12, atol=1e-12)


def test_an_exact_network_keeps_the_marginals_at_every_noise_share():
    """From x_k ~ p_k with the exact eps of a point, a layer lands on p_{k-1} whatever its share."""
    mu = 0.7
    for share in (0.0, 0.4, 1.0):
        chain = make([0, 200, 700], share)

        def exact(x, time, labels, alpha_bar):
            level = alpha_bar.double()[:, None]
            return (x - level.sqrt() * mu) / (1 - level).sqrt()

        nodes, weights = gauss_hermite(3, 2)
        alpha_bar = chain.alpha_bar
        x = alpha_bar[2].sqrt() * mu + chain.sigma[2] * nodes[:, :1]
        visit = next(walk(exact, chain, x, None, UNTRAINED))
        x = visit.mean + chain.s0[2] * nodes[:, 1:]
        mean = weights @ x
        var = weights @ (x - mean).square()
        # the network is told alpha_bar in float32
        assert mean.item() == pytest.approx((alpha_bar[1].sqrt() * mu).item(), rel=1e-6)
        assert var.item() == pytest.approx((1 - alpha_bar[1]).item(), rel=1e-6)


@pytest.mark.parametrize(("nfe", "low", "high"), [(5, 25, 29.5), (10, 26.5, 41), (15, 29, 53.5)])
def test_the_papers_eta_gives_the_noise_shares_that_the_method_quotes(nfe, low, high):
    from hsivi_cli.method.schedule import grid

    table = linear_table()
    chain = make(grid("quad", nfe, table))
    shares = torch.tensor(eta_shares(chain.alpha_bar, 0.2), dtype=torch.float64)
    second = shares**-2
    assert low < second.min() and second.max() < high
    ratio = 1 - chain.alpha_bar[1:] / chain.alpha_bar[:-1]
    told = 0.2 * (ratio * chain.sigma[:-1] ** 2 / chain.sigma[1:] ** 2).sqrt()
    torch.testing.assert_close(with_noise_share(chain, shares).s0[1:], told, rtol=1e-12, atol=0)
    assert eta_shares(torch.tensor([1.0, 0.9, 0.2]), 1.0)[0] == 0  # clean data have no noise


def test_noise_shares_read_back_and_only_0_to_1_is_taken():
    shares = [0.2, 0.5, 1.0]
    chain = make([0, 100, 300, 700], shares)
    # sigma at time 0 is the root of 1e-4, a difference from 1
    assert chain.noise_share.tolist() == pytest.approx(shares, rel=1e-9)
    assert ddim_chain([-1, 10], torch.tensor([1.0, 0.9])).noise_share.tolist() == [0]
    for bad in (-0.1, 1.1, [0.1, 0.2, 2.0]):
        with pytest.raises(HsiviError, match=r"noise shares lie in \[0, 1\]"):
            with_noise_share(chain, bad)


# ---- walking -------------------------------------------------------------------------------------


@pytest.mark.parametrize("maker", [ddim_chain, ipndm_chain])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("nfe", [1, 3, 5])
def test_a_walk_is_offset_gain_and_mean_and_costs_one_call_a_layer(maker, share, nfe):
    times = [0, 50, 200, 400, 600, 800][: nfe + 1]
    chain = with_noise_share(maker(times, linear_table()[times]), share)
    calls = []

    def counted(x, time, labels, alpha_bar):
        assert torch.equal(labels, torch.arange(4))
        assert time.shape == alpha_bar.shape == (4,)
        calls.append((time[0].item(), alpha_bar[0].item()))
        return curved(x, time)

    x, noise = start(layers=nfe - 1)
    visits = list(walk(counted, chain, x, noise, UNTRAINED, torch.arange(4)))
    assert [v.k for v in visits] == list(range(nfe, 0, -1))
    # the network is told float32
    assert calls == [(times[k], chain.alpha_bar[k].float().item()) for k in range(nfe, 0, -1)]
    for i, v in enumerate(visits):
        eps = curved(v.x, chain.time[v.k].expand(4))
        torch.testing.assert_close(v.offset + chain.gain[v.k] * eps, v.mean, rtol=1e-12, atol=1e-12)
        if i + 1 < nfe:
            told = v.mean + (chain.s0[v.k] * noise[i] if share else 0)
            torch.testing.assert_close(visits[i + 1].x, told, rtol=1e-12, atol=1e-12)


def test_the_last_layer_adds_no_noise():
    chain = make([0, 200, 700], 1.0)
    x, noise = start(layers=1)
    end = sample(curved, chain, x, noise, UNTRAINED)
    last = list(walk(curved, chain, x, noise, UNTRAINED))[-1]
    assert torch.equal(end, last.mean) and chain.s0[1] > 0


def test_a_deterministic_chain_needs_no_noise():
    x, _ = start()
    sample(curved, make([0, 200, 700]), x, None, UNTRAINED)


def test_a_top_sd_is_that_of_a_samples_x_k_and_no_walks():
    chain = make([0, 200, 700], 0.5)
    wide = replace(chain, top_sd=torch.tensor(1.2, dtype=torch.float64))
    x, noise = start(layers=1)
    told = sample(curved, wide, x, noise, UNTRAINED)
    wanted = sample(curved, chain, 1.2 * x, noise, UNTRAINED)
    torch.testing.assert_close(told, wanted, rtol=1e-14, atol=1e-14)
    assert not torch.allclose(told, sample(curved, chain, x, noise, UNTRAINED), rtol=1e-3)
    assert torch.equal(next(walk(curved, wide, x, noise, UNTRAINED)).x, x)


def test_a_sample_does_not_depend_on_its_batch():
    chain = make([0, 200, 700], 0.5)
    x, noise = start(layers=1)
    whole = sample(curved, chain, x, noise, UNTRAINED)
    part = sample(curved, chain, x[1:3], [n[1:3] for n in noise], UNTRAINED)
    torch.testing.assert_close(whole[1:3], part, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (3, 1, 1, 1), (1, 2, 4, 4), (3, 2, 4, 4)],
    ids=["scalar", "layer", "pixel", "both"],
)
def test_the_noise_scale_is_one_for_all_layers_or_one_a_layer(shape):
    chain = make([0, 100, 300, 700], [0.2, 0.5, 1.0])
    torch.manual_seed(0)
    log_scale = torch.randn(shape, dtype=torch.float64)
    layer = torch.tensor([3, 1, 2, 1])
    std = std_of(chain, layer, log_scale)
    for i, k in enumerate(layer.tolist()):
        own = log_scale[k - 1 if shape[0] > 1 else 0]
        torch.testing.assert_close(std[i], own.exp() * chain.s0[k])
    torch.broadcast_shapes(std.shape, (4, 2, 4, 4))


# ---- observing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("std", [0.0, 0.2, 0.6])
@pytest.mark.parametrize("tau", [0.6999, 0.4, 1e-4])
def test_observing_diffuses_the_layers_draw_on_and_knows_its_score(std, tau):
    """x_tau | x_k = N(sqrt(r) mean, r std^2 + 1 - r), layer_eps = -sigma_tau times its score."""
    alpha_bar = torch.tensor([0.7], dtype=torch.float64)
    level = torch.tensor([tau], dtype=torch.float64)
    mean = torch.tensor([[1.3, -0.2]], dtype=torch.float64)
    r = tau / 0.7
    for noise in (torch.tensor([[0.5, -2.0]], dtype=torch.float64), torch.zeros(1, 2).double()):
        x, layer_eps = observe(
            mean, torch.tensor(std, dtype=torch.float64), alpha_bar, level, noise
        )
        told = math.sqrt(r) * mean + math.sqrt(r * std**2 + 1 - r) * noise
        torch.testing.assert_close(x, told, rtol=1e-12, atol=1e-12)
        point = x.clone().requires_grad_()
        log_density = -(point - math.sqrt(r) * mean).square().sum() / (2 * (r * std**2 + 1 - r))
        (score,) = torch.autograd.grad(log_density, point)
        # r = 1 - 1e-4 leaves twelve digits in 1 - r
        torch.testing.assert_close(layer_eps, -math.sqrt(1 - tau) * score, rtol=1e-10, atol=1e-10)


def test_observing_equals_noising_the_draw_in_a_second_step():
    """sqrt(r) (mean + std n1) + sqrt(1 - r) n2 has one draw's moments over both noises."""
    r, std = 0.5, 0.3
    nodes, weights = gauss_hermite(3, 2)
    two = math.sqrt(r) * (0.8 + std * nodes[:, 0]) + math.sqrt(1 - r) * nodes[:, 1]
    level = torch.full((len(nodes),), 0.8, dtype=torch.float64)
    mean = torch.full((len(nodes), 1), 0.8, dtype=torch.float64)
    one, _ = observe(mean, torch.tensor(std).double(), level, level * r, nodes[:, :1])
    for power in (1, 2, 3, 4):
        # std is a float32 number in double on one side only: 1e-7 relative
        told = (weights @ two**power).item()
        assert (weights @ one[:, 0] ** power).item() == pytest.approx(told, rel=1e-6)


def test_at_its_own_level_observing_is_the_papers_draw():
    level = torch.tensor([0.7], dtype=torch.float64)
    mean, noise = torch.ones(1, 2).double(), torch.tensor([[0.5, -2.0]], dtype=torch.float64)
    x, layer_eps = observe(mean, torch.tensor(0.25).double(), level, level, noise)
    assert torch.equal(x, mean + 0.25 * noise)
    torch.testing.assert_close(layer_eps, math.sqrt(0.3) / 0.25 * noise, rtol=1e-14, atol=0)


@pytest.mark.parametrize("tau", [0.7, 0.5, 0.01])
def test_under_full_renoising_layer_eps_is_the_noise_itself(tau):
    level, on = torch.tensor([0.7], dtype=torch.float64), torch.tensor([tau], dtype=torch.float64)
    noise = torch.tensor([[0.5, -2.0]], dtype=torch.float64)
    _, layer_eps = observe(torch.ones(1, 2).double(), (1 - level).sqrt(), level, on, noise)
    torch.testing.assert_close(layer_eps, noise, rtol=1e-12, atol=0)


def edges(chain, levels):
    """The lowest and highest tau of each layer."""
    layers = torch.arange(1, chain.nfe + 1)
    lowest, highest = torch.zeros(chain.nfe), torch.full((chain.nfe,), 1 - 2.0**-24)
    table = linear_table()
    return [draw_levels(chain, layers, u, levels, table).tolist() for u in (lowest, highest)]


def test_levels_stay_in_their_layers_segment_and_the_top_reaches_the_schedules_end():
    low, high = edges(make([0, 150, 340, 560, 800]), "segment")
    assert low == [5, 155, 345, 565]
    assert high == [149, 339, 559, 999]


def test_levels_above_reach_the_end_from_every_layer():
    assert edges(make([0, 150, 340]), "above") == [[5, 155], [999, 999]]


def test_the_papers_own_level_is_the_layers():
    assert edges(make([0, 150, 340]), "own") == [[0, 150], [0, 150]]


def test_segments_are_drawn_evenly():
    chain = make([0, 25, 40])
    uniform = (torch.arange(2000) + 0.5) / 2000
    tau = draw_levels(chain, torch.ones(2000, dtype=torch.long), uniform, "segment", linear_table())
    assert tau.bincount().tolist() == [0] * 5 + [100] * 20


@pytest.mark.parametrize(
    "times",
    [
        [0, 3, 6, 10],
        [-1, 4, 8, 20],
        [0, 1, 2, 3],
        [-1, 0, 30, 500],
        [0, 500, 997, 999],
        [-1, 0, 2, 999],
    ],
)
def test_levels_never_overlap_nor_leave_the_schedule_in_short_or_odd_grids(times):
    alpha_bar = torch.cat([torch.ones(1).double(), linear_table()])[[t + 1 for t in times]]
    chain = ddim_chain(times, alpha_bar)
    low, high = edges(chain, "segment")
    assert low[0] >= 0 and high[-1] <= 999
    assert all(lo <= hi for lo, hi in zip(low, high, strict=True))
    assert all(hi < lo for hi, lo in zip(high, low[1:], strict=False))
    assert all(lo >= t for lo, t in zip(low, times, strict=False))  # never above the layer's own
    own_low, own_high = edges(chain, "own")
    assert own_low == own_high and own_low[0] >= 0


@pytest.mark.parametrize("levels", ["segment", "above", "own"])
def test_levels_are_those_of_the_states_whatever_the_network_is_told(levels):
    chain = make([0, 150, 340, 560])
    told = replace(chain, time=torch.tensor([0.0, 131.5, 366.2, 555.0]).double())
    assert edges(told, levels) == edges(chain, levels)
