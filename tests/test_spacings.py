"""Solvers against diffusers' own trajectories.

A smooth function of (x, time) serves as the model of the trajectories: what is tested is the walk.
"""

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, HeunDiscreteScheduler
from walks import BETAS, assert_walks_agree, model, start, trajectory, walk

from hsivi_cli.errors import HsiviError
from hsivi_cli.method import schedule, solvers
from hsivi_cli.method.chain import eta_shares, with_noise_share
from hsivi_cli.method.chain import walk as walk_layers
from hsivi_cli.models.spacings import (
    GRID_SPACINGS,
    OWN_SPACINGS,
    at_times,
    multistep,
    own_times,
    solver,
    solver_names,
)

FAMILIES = {
    "dpm++2": ("DPMSolverMultistepScheduler", {"solver_order": 2}),
    "dpm++3": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 3}),
    "deis": ("DEISMultistepScheduler", {"solver_order": 3}),
}
SDE = {
    f"sde-dpm++{order}": (
        "DPMSolverMultistepScheduler",
        {"solver_order": order, "algorithm_type": "sde-dpmsolver++"},
    )
    for order in (2, 3)
}


def reference(name, nfe, betas, prediction, **more):
    family, _, spacing = name.rpartition("-")
    kind, options = (FAMILIES | SDE)[family]
    options = options | more | {"beta_schedule": betas, "prediction_type": prediction}
    if spacing in ("lu", "karras"):
        options["use_lu_lambdas" if spacing == "lu" else "use_karras_sigmas"] = True
    else:
        options["timestep_spacing"] = spacing
    scheduler = getattr(diffusers, kind)(**options)
    scheduler.set_timesteps(nfe)
    return scheduler


SDE_NAMES = [n for n in solver_names(tuple(SDE)) if not n.endswith(GRID_SPACINGS)]
THEIR_NAMES = [n for n in solver_names(tuple(FAMILIES)) if not n.endswith(GRID_SPACINGS)]


@pytest.mark.parametrize("name", THEIR_NAMES)
def test_a_solver_is_diffusers_own_scheduler(name):
    """At 1, 2, 3, 5 and 8 calls, from every prediction type, under every beta schedule."""
    for betas in BETAS:
        teacher = DDPMScheduler(beta_schedule=betas)
        table = teacher.alphas_cumprod.double()
        for nfe in (1, 2, 3, 5, 8):
            if betas == "squaredcos_cap_v2" and name.endswith("karras") and nfe > 3:
                continue  # visits a time twice: see below
            if (name, nfe) == ("deis-karras", 1):
                continue  # returns its noise: see below
            chain = solver(name, nfe, teacher, table)
            assert chain.nfe == nfe
            for prediction in schedule.PREDICTIONS:
                scheduler = reference(name, nfe, betas, prediction)
                told = trajectory(scheduler, start())
                assert_walks_agree(walk(chain, prediction, start()), told, chain)
                assert chain.time[1:].flip(0).tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("name", SDE_NAMES)
def test_a_solver_that_adds_noise_is_diffusers_own_with_the_same_noises(name, betas):
    teacher = DDPMScheduler(beta_schedule=betas)
    table = teacher.alphas_cumprod.double()
    for nfe in (1, 2, 3, 5, 8):
        if betas == "squaredcos_cap_v2" and name.endswith("karras") and nfe > 3:
            continue  # visits a time twice: see below
        chain = solver(name, nfe, teacher, table)
        rng = torch.Generator().manual_seed(5)
        noise = [torch.randn(start().shape, generator=rng) for _ in range(nfe)]
        for prediction in schedule.PREDICTIONS:
            scheduler, told = reference(name, nfe, betas, prediction), start()
            for fresh, t in zip(noise, scheduler.timesteps, strict=True):
                out = model(told, t)
                told = scheduler.step(out, t, told, variance_noise=fresh).prev_sample
            assert_walks_agree(walk(chain, prediction, start(), noise[:-1]), told, chain)
            assert chain.time[1:].flip(0).tolist() == scheduler.timesteps.tolist()
        assert (chain.s0[2:] > 0).all() and chain.s0[1] == 0  # the last step adds none
        assert chain.c0.any() == (nfe > 2) and torch.equal(chain.c0, chain.c0.triu(1))


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("spacing", ["linspace", "karras", "lu", "auto"])
def test_dpm_solver_with_the_shares_of_eta_1_is_its_sde_form(spacing, betas):
    """And without them the SDE form is DPM-Solver++ again; the same share is the same chain."""
    scheduler = DDPMScheduler(beta_schedule=betas)
    table = scheduler.alphas_cumprod.double()
    for nfe in (1, 2, 3):
        plain, sde = (solver(f"{f}dpm++2-{spacing}", nfe, scheduler, table) for f in ("", "sde-"))
        for found, wanted in (
            (with_noise_share(plain, eta_shares(plain.alpha_bar, 1.0)), sde),
            (with_noise_share(sde, 0.0), plain),
            (with_noise_share(with_noise_share(plain, 0.7), 0.0), plain),
        ):
            for name in ("time", "alpha_bar", "cx", "ce", "s0", "c0"):
                pair = getattr(found, name), getattr(wanted, name)
                torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-5)  # sigmas are float32


@pytest.mark.parametrize("name", ["dpm++3-log-snr", "dpm++2-auto"])
def test_fresh_noise_does_not_come_into_what_dpm_solver_keeps(name):
    """Where the data are one point, every state has its level's noise, whatever a layer's share."""
    scheduler, point = DDPMScheduler(), 0.7
    chain = with_noise_share(solver(name, 8, scheduler, scheduler.alphas_cumprod.double()), 0.5)

    def network(x, time, labels, alpha_bar):
        signal, sigma = (t.view(-1, 1) for t in (alpha_bar.sqrt(), (1 - alpha_bar).sqrt()))
        return (x - signal * point) / sigma

    rng = torch.Generator().manual_seed(6)
    top, *noise = torch.randn(8, 20_000, 1, generator=rng)
    x = chain.alpha_bar[-1].sqrt() * point + chain.sigma[-1] * top
    *visits, last = walk_layers(network, chain, x.float(), noise, torch.zeros(1, 1))
    for visit in visits:
        rest = visit.x - chain.alpha_bar[visit.k].sqrt() * point
        assert rest.std().item() == pytest.approx(chain.sigma[visit.k].item(), rel=0.02)
    torch.testing.assert_close(last.mean, torch.full_like(last.mean, point), rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_multistep_solver_at_the_grids_times_is_diffusers_own_moved_there(family):
    """Moved to the times it has, it stays what it is; DPM-Solver++ takes times by itself."""
    teacher = DDPMScheduler(beta_schedule="scaled_linear")
    table = teacher.alphas_cumprod.double()
    for nfe in (1, 2, 5):
        moved, plain = (multistep(family, "trailing", nfe, teacher) for _ in range(2))
        at_times(moved, own_times("trailing", nfe, table), table)
        moved, plain = solvers.solver_chain(moved), solvers.solver_chain(plain)
        assert torch.equal(moved.time, plain.time)
        torch.testing.assert_close(moved.cx, plain.cx, rtol=1e-5, atol=0)  # ratios are float32
        torch.testing.assert_close(moved.ce, plain.ce, rtol=1e-5, atol=1e-5)
        for spacing in GRID_SPACINGS:
            chain = solver(f"{family}-{spacing}", nfe, teacher, table)
            times = schedule.grid(spacing, nfe, table)[1:]
            assert chain.time[1:].tolist() == times
            torch.testing.assert_close(chain.alpha_bar[1:], table[times], rtol=1e-6, atol=0)
            if family.startswith("dpm++"):
                own = reference(f"{family}-linspace", nfe, "scaled_linear", "epsilon")
                own.set_timesteps(timesteps=times[::-1])
                assert_walks_agree(walk(chain, "epsilon", start()), trajectory(own, start()), chain)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_ddim_is_the_first_order_of_diffusers_dpm_solver(spacing):
    scheduler = DDPMScheduler()
    for nfe in (1, 2, 3, 5, 8):
        chain = solver(f"ddim-{spacing}", nfe, scheduler, scheduler.alphas_cumprod.double())
        first = reference(f"dpm++2-{spacing}", nfe, "linear", "epsilon", solver_order=1)
        assert_walks_agree(walk(chain, "epsilon", start()), trajectory(first, start()), chain)


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
@pytest.mark.parametrize("betas", BETAS)
def test_ddim_has_the_times_and_steps_of_diffusers_ddim_scheduler_too(spacing, betas):
    teacher = DDPMScheduler(beta_schedule=betas)
    table = teacher.alphas_cumprod.double()
    for nfe in (1, 2, 3, 7, 10):
        chain = solver(f"ddim-diffusers-{spacing}", nfe, teacher, table)
        for prediction in schedule.PREDICTIONS:
            scheduler = DDIMScheduler(
                beta_schedule=betas,
                clip_sample=False,
                timestep_spacing=spacing,
                prediction_type=prediction,
            )
            scheduler.set_timesteps(nfe)
            assert chain.time[1:].flip(0).tolist() == scheduler.timesteps.tolist()
            told = trajectory(scheduler, start())
            assert_walks_agree(walk(chain, prediction, start()), told, chain)


@pytest.mark.parametrize("name", [f"{f}-{s}" for f in ("ddim", "ipndm") for s in OWN_SPACINGS])
@pytest.mark.parametrize("prediction", schedule.PREDICTIONS)
def test_ddim_and_ipndm_are_their_closed_formulas_at_their_own_times(name, prediction):
    scheduler = DDPMScheduler(beta_schedule="scaled_linear")
    table = scheduler.alphas_cumprod.double()
    family, spacing = name.split("-", 1)
    weights = [
        [1],
        [3 / 2, -1 / 2],
        [23 / 12, -16 / 12, 5 / 12],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ]
    for nfe in (1, 3, 5):
        chain = solver(name, nfe, scheduler, table)
        assert torch.equal(chain.time, solver(f"ddim-{spacing}", nfe, scheduler, table).time)
        times = chain.time.long().tolist()
        assert times[0] == -1 and len(times) == nfe + 1
        x, earlier = start().double(), []
        for k in range(nfe, 0, -1):
            level, below = (
                table[times[k]],
                table[times[k - 1]] if k > 1 else torch.tensor(1.0).double(),
            )
            eps = schedule.to_eps(model(x, float(times[k])), x, level.expand(16), prediction)
            earlier.insert(0, eps)
            if family == "ipndm":
                used = weights[min(4, len(earlier)) - 1]
                eps = sum(w * e for w, e in zip(used, earlier, strict=False))
            x0 = (x - (1 - level).sqrt() * eps) / level.sqrt()
            x = below.sqrt() * x0 + (1 - below).sqrt() * eps
        # walked in float64: the level the network is told is float32, magnified as above
        assert_walks_agree(walk(chain, prediction, start().double()), x, chain)


@pytest.mark.parametrize("name", solver_names(("heun",)))
@pytest.mark.parametrize("prediction", schedule.PREDICTIONS)
def test_heun_is_its_closed_formula_in_odd_numbers_of_calls(name, prediction):
    """In the variance-exploding state y = x / sqrt(alpha_bar), where a step is dy = eps d ratio."""
    scheduler = DDPMScheduler(beta_schedule="scaled_linear")
    table = scheduler.alphas_cumprod.double()
    for nfe in (1, 3, 7):
        calls, chain = [], solver(name, nfe, scheduler, table)

        def eps_at(y, time, level, calls=calls):
            calls.append(time)
            x = y * level.sqrt()
            # time and level in float32, as a chain tells them: at time 0, 1 - level has 3 digits
            output = model(x, torch.tensor(float(time)))
            return schedule.to_eps(output, x, level.float().expand(16), prediction)

        times = own_times(name.split("-", 1)[1], (nfe + 1) // 2, table)[::-1]
        levels = [*table[times], torch.tensor(1.0).double()]
        y = start().double() / levels[0].sqrt()
        for i, time in enumerate(times):
            here, there = (schedule.noise_to_signal(level) for level in levels[i : i + 2])
            first = eps_at(y, time, levels[i])
            lower = y + (there - here) * first
            if i + 1 < len(times):
                second = eps_at(lower, times[i + 1], levels[i + 1])
                lower = y + (there - here) * (first + second) / 2
            y = lower
        assert len(calls) == nfe == chain.nfe and chain.time[1:].flip(0).tolist() == calls
        found = walk(chain, prediction, start().double())  # all else in float64
        torch.testing.assert_close(found, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("nfe", [1, 3, 5, 9])
def test_heun_is_diffusers_own_at_the_same_times(betas, nfe):
    """As a walk, and as the coefficients that are read off diffusers' scheduler."""
    teacher = DDPMScheduler(beta_schedule=betas)
    table = teacher.alphas_cumprod.double()
    chain = solver("heun-leading", nfe, teacher, table)
    told = HeunDiscreteScheduler(beta_schedule=betas, beta_start=1e-4, beta_end=0.02)
    told.set_timesteps(timesteps=own_times("leading", (nfe + 1) // 2, table)[::-1])
    assert told.timesteps.tolist() == chain.time[1:].flip(0).tolist()
    read = solvers.solver_chain(told)
    # its ratios and states are float32, and its first state is the ratio times ours
    close = 1e-6 * schedule.noise_to_signal(table[chain.time[-1].long()]).item() + 1e-6
    for name in ("time", "alpha_bar", "cx", "ce"):
        found, own = getattr(read, name), getattr(chain, name)
        torch.testing.assert_close(found, own, rtol=close, atol=close)


def test_the_spacings_of_the_own_solvers():
    scheduler = DDPMScheduler()

    def times(name, nfe=4):
        return solver(name, nfe, scheduler, scheduler.alphas_cumprod.double()).time.tolist()

    assert times("ddim") == times("ddim-linspace") == [-1, 250, 500, 749, 999]
    assert times("ddim-leading") == [-1, 200, 400, 600, 800]
    assert times("ddim-leading", 10) == [-1, *range(90, 901, 90)]
    assert times("ddim-diffusers-leading", 10) == [-1, *range(0, 901, 100)]
    assert times("ddim-diffusers-linspace", 10) == [-1, *range(0, 1000, 111)]
    assert times("ipndm-trailing") == [-1, 249, 499, 749, 999]
    assert times("ddim-quad", 5) == [-1, 32, 128, 288, 512, 800]
    assert times("heun", 5) == [-1, 333, 333, 666, 666, 999]
    assert times("ddim-karras")[1:] == times("heun-karras", 7)[1::2] == times("unipc-karras")[1:]
    for name in ("dpm++2", "dpm++3-trailing", "unipc-leading", "deis"):
        spacing = name.partition("-")[2] or "linspace"
        assert times(name)[1:] == times(f"ddim-{spacing}")[1:]


def test_deis_ends_at_time_0_and_the_others_at_clean_data():
    scheduler = DDPMScheduler()
    table = scheduler.alphas_cumprod.double()
    for name in solver_names():
        chain = solver(name, 3, scheduler, table)
        if name.startswith("deis"):
            # its sigmas are float32
            assert chain.time[0] == 0 and chain.alpha_bar[0].item() == pytest.approx(
                table[0].item(), rel=1e-7
            )
        else:
            assert chain.time[0] == -1 and chain.alpha_bar[0] == 1
        assert torch.equal(chain.ce, chain.ce.triu())
        assert chain.s0.any() == name.startswith(("ddpm", "sde-"))


@pytest.mark.parametrize("family", ["dpm++2", "dpm++3", "unipc"])
def test_a_solver_that_would_visit_a_time_twice_is_refused(family):
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    with pytest.raises(HsiviError, match="karras visits a time twice in 8 calls"):
        solver(f"{family}-karras", 8, scheduler, scheduler.alphas_cumprod.double())


@pytest.mark.parametrize(
    ("name", "nfe", "cause"),
    [
        ("edm", 5, "there is no solver 'edm': solvers are ddim, ipndm, heun, ddpm, dpm"),
        ("auto", 5, "there is no solver 'auto' .hsivi sample looks for the best where --solver is"),
        ("euler-a", 5, "no solver 'euler-a' .it adds noise at every step.*: solvers are ddim"),
        ("ddpm-lu", 5, "ddpm has the spacings linspace, leading, trailing, karras"),
        ("ddpm", 1001, "ddpm cannot take 1001 calls"),
        ("heun", 4, "heun takes two calls a step but one for the last.* ask for 3 or 5"),
        ("unipc-lu", 4, "unipc has the spacings linspace, leading, trailing, karras"),
        ("ddim-karras", 400, "ddim-karras visits a time twice in 400 calls"),
        ("ddim", 0, "ddim cannot take 0 calls on a schedule of 1000 times"),
        ("unipc", 1001, "unipc cannot take 1001 calls"),
        ("deis-karras", 1, "deis-karras leaves the noise as it is at 1 call"),
    ],
)
def test_a_solver_that_there_is_not_is_refused_with_those_there_are(name, nfe, cause):
    scheduler = DDPMScheduler()
    with pytest.raises(HsiviError, match=cause):
        solver(name, nfe, scheduler, scheduler.alphas_cumprod.double())


def test_a_solver_ignores_the_teachers_own_thresholding_and_prediction_type():
    plain, odd = DDPMScheduler(), DDPMScheduler(thresholding=True, prediction_type="sample")
    table = plain.alphas_cumprod.double()
    for name in ("dpm++2", "unipc", "deis"):
        assert torch.equal(solver(name, 3, plain, table).ce, solver(name, 3, odd, table).ce)
