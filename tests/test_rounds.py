"""Rounds of training: what is recovered, and by which settings."""

from dataclasses import replace

import pytest
import torch

from hsivi_cli.config import InferConfig
from hsivi_cli.density import objectives, rounds, targets
from hsivi_cli.density.fit import first_round, fit
from hsivi_cli.density.networks import make_networks, resolved
from hsivi_cli.density.rounds import play_round
from hsivi_cli.errors import HsiviError
from hsivi_cli.method.steps import rng, student_rate

SMALL = {"layers": 2, "width": 16, "depth": 1, "batch_size": 16, "steps": 4, "fake_warmup": 2}
SMALL |= {"path_steps": 2}
MEAN, COV = torch.tensor([0.8, -0.5]), torch.tensor([[1.0, 0.6], [0.6, 0.8]])


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"objective": "sm", "layers": 1, "mixing": 500}, marks=pytest.mark.slow),
        {"objective": "sm", "layers": 2, "mixing": 500, "steps": 200},
        pytest.param(
            {"objective": "sm", "layers": 1, "fake_score": "network"}, marks=pytest.mark.slow
        ),
        {"objective": "lb", "layers": 1},
        {"objective": "lb", "layers": 2, "order": "sequential", "noise_dim": 1},
        {"objective": "ksivi", "layers": 1, "levels": "own"},
        {"objective": "reverse-kl", "layers": 1},
        pytest.param({"objective": "reverse-kl", "layers": 2}, marks=pytest.mark.slow),
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
def test_a_gaussians_mean_and_covariance_are_recovered(options):
    target = targets.GaussianMixture(MEAN[None], COV)
    family = fit(
        target, 2, False, width=32, depth=1, batch_size=128, student_rate=3e-3, fake_rate=3e-3,
        fake_updates=5, sines=0, path_steps=0, **{"mixing": 50, "steps": 400} | options,
    )  # fmt: skip
    x = family.sample(20_000)
    # some hundred updates of 128 leave .05 in the weights; sampling adds 3/sqrt(20,000) = .02
    torch.testing.assert_close(x.mean(0), MEAN, rtol=0, atol=0.12)
    torch.testing.assert_close(x.T.cov(), COV, rtol=0, atol=0.17)


@pytest.mark.parametrize("objective", ["lb", "sm"])
def test_modes_that_lie_apart_hold_their_shares(objective):
    # .8 and .2, 13 sds apart: without a start by the flow, at its own level alone, a layer holds
    # what its modes had when they came apart
    target, share = targets.uneven_gaussians(), {}
    options = {"layers": 1, "width": 32, "depth": 1, "batch_size": 128, "mixing": 100, "sines": 4}
    options |= {"steps": 200, "objective": objective, "fake_updates": 2}
    for name, own in (("default", {}), ("bare", {"levels": "own", "path_steps": 0})):
        family = fit(target, 2, False, **options, **own)
        share[name] = (family.sample(20_000)[:, 0] > 0).float().mean().item()
    assert abs(share["default"] - 0.2) < 0.03 and abs(share["bare"] - 0.2) > 0.1


def test_a_funnels_sds_change_with_x():
    # one sd for all of a layer leaves the funnel's mouth at a fifth of its width
    x = fit(targets.funnel(), 2, False, layers=1, width=32, depth=1, steps=300, sines=0,
            student_rate=3e-3, mixing=200).sample(50_000)  # fmt: skip
    low, high = (x[(x[:, 0] - at).abs() < 1, 1].std() for at in (-3, 3))
    # exp(x_1 / 2) over a window of width 2 about -3 and 3, .23 and 4.9
    assert 0.15 < low < 0.4 and 2.5 < high < 7 and abs(x[:, 0].std() - 3) < 0.8


def test_the_first_layer_of_two_ends_at_the_bridges_own_marginal():
    target = targets.GaussianMixture(MEAN[None], COV)
    family = fit(target, 2, False, layers=2, width=32, depth=1, batch_size=128, steps=400,
                 student_rate=3e-3, mixing=50, sines=0, path_steps=0, objective="lb")  # fmt: skip
    x = family.marginals(20_000)[1]
    # p_1 is the target at alpha_bar 3/4; tolerances as above
    torch.testing.assert_close(x.mean(0), 0.75**0.5 * MEAN, rtol=0, atol=0.12)
    torch.testing.assert_close(x.T.cov(), 0.75 * COV + 0.25 * torch.eye(2), rtol=0, atol=0.17)


def test_the_bound_is_that_of_all_normals_of_a_fresh_roll_out():
    target = targets.x_shape()
    config = InferConfig(**SMALL | {"layers": 1, "objective": "lb"}, levels="own", mixing=30)
    networks = make_networks(resolved(config, target), target)
    pool = objectives.roll_out(networks.family, config, 1, 1)
    loss, bound = objectives.student_loss(networks, config, pool, 1, rng(0, "noise"))
    normal = pool.normal[1]
    assert len(normal.mean) == 16 + 30
    noise = torch.randn(16, 2, generator=rng(0, "noise"))
    x = normal[slice(16)].draw(noise)
    weight = pool.weight - torch.eye(16, 46) * pool.weight / 2  # a draw's own counts half
    q = (weight * normal.pairs(x).exp()).mean(1).log()
    gap = pool.weight[:16] * (q - target.log_prob(x))
    assert bound.item() == pytest.approx(gap.mean().item(), abs=1e-4)
    assert loss.item() == pytest.approx(bound.item() / 2, abs=1e-4)


def test_score_matching_by_a_mixture_measures_fishers_divergence_in_the_normals_own_units():
    # untrained, q is N(0, I) and all normals' variance .25; 20,000 of them know q's score
    target = targets.GaussianMixture(MEAN[None], COV)
    options = {"layers": 1, "objective": "sm", "mixing": 20_000, "path_steps": 0, "levels": "own"}
    config = resolved(InferConfig(**SMALL | options | {"batch_size": 2000}), target)
    networks = make_networks(config, target)
    pool = objectives.roll_out(networks.family, config, 1, 1)
    _, bound = objectives.student_loss(networks, config, pool, 1, rng(0, "noise"))
    x = torch.randn(200_000, 2, generator=rng(0, "x"))
    fisher = (target.score(x) + x).square().sum(1).mean()
    # 2,000 draws of weights up to 2
    assert bound.item() == pytest.approx(0.25 * fisher.item(), rel=0.1)


@pytest.mark.parametrize("a", [0.5, 1.0])
def test_at_the_truth_few_normals_leave_score_matching_unbiased(a):
    # q is N(0, I) before training, and so is the target: 40 normals' own error is .2 to .3, whose
    # square would pull draws together or throw them out
    target = targets.GaussianMixture(torch.zeros(1, 2), 1.0)
    options = {"layers": 1, "objective": "sm", "path_steps": 0, "levels": "own", "mixing": 24}
    config = resolved(InferConfig(**SMALL | options | {"a": a}), target)
    networks, found = make_networks(config, target), []
    for round_ in range(500):
        pool = objectives.roll_out(networks.family, config, round_, 1)
        noise = torch.randn(16, 2, generator=rng(round_, "noise"))
        level = torch.ones(16, 1)
        losses, _ = objectives.mixture_losses(networks, config, pool, 1, noise, level)
        found.append(losses[0].detach().mean())
    assert abs(torch.stack(found).mean()) < 0.025


def test_a_draw_that_its_own_normal_alone_reaches_weighs_nothing():
    # q's score there is the normal's own, and what it said would hold of any q
    target = targets.GaussianMixture(torch.zeros(1, 2), 1.0)
    options = {"layers": 1, "objective": "sm", "path_steps": 0, "levels": "own", "mixing": 16}
    config = resolved(InferConfig(**SMALL | options), target)
    networks = make_networks(config, target)
    pool = objectives.roll_out(networks.family, config, 1, 1)
    pool.x[1][0] = torch.tensor([50.0, 0.0])
    pool.normal[1] = networks.family[1](pool.x[1], pool.u[1])
    losses, bounds = objectives.mixture_losses(
        networks, config, pool, 1, torch.zeros(16, 2), torch.ones(16, 1)
    )
    assert losses[0][0] == bounds[0][0] == 0 and losses[0][1:].all()


def test_rows_are_judged_above_their_layers_level_too():
    # of 16 rows: half, at one level by the bound and at their own by a network's score; three
    # quarters at four levels by a mixture's
    target = targets.x_shape()
    for options, above, levels in (
        ({"objective": "lb"}, 8, 2),
        ({"objective": "sm", "fake_score": "network"}, 8, 9),
        ({"objective": "sm"}, 12, 5),
    ):
        config = resolved(InferConfig(**SMALL | options), target)
        networks = make_networks(config, target)
        found = objectives.levels_of_rows(networks, config, 2, 16, rng(0, "levels"))
        assert (found < 0.75).sum() == above and (found <= 0.75).all() and (found > 0).all()
        assert len(found.unique()) == levels
        own = objectives.levels_of_rows(
            networks, replace(config, levels="own"), 2, 16, rng(0, "levels")
        )
        assert own.unique() == 0.75


def test_weights_make_wide_rows_stand_for_the_base():
    for dim in (1, 2):
        x = objectives.wide_normals(200_000, dim, rng(0, "wide"))
        weight = objectives.wide_weight(x)
        assert x.std() > 1.5 and weight.max() <= 2
        for power, moment in ((0, 1.0), (1, 0.0), (2, 1.0), (4, 3.0)):
            found = (weight[:, None] * x**power).mean(0)
            torch.testing.assert_close(found, torch.full((dim,), moment), rtol=0.01, atol=0.01)


def test_the_draws_own_normal_counts_half_so_that_few_normals_know_the_density():
    # N(0, 1) as a mixture of N(z, .1^2) is .19 too high with 40 normals, own among them, and .9 too
    # low without
    rng, error = torch.Generator().manual_seed(0), {}
    z = (0.99**0.5 * torch.randn(3000, 40, 1, generator=rng)).double()
    x = z[:, 0] + 0.1 * torch.randn(3000, 1, generator=rng)
    pairs = torch.distributions.Normal(z[:, :, 0], 0.1).log_prob(x)
    truth = torch.distributions.Normal(0.0, 1.0).log_prob(x[:, 0])
    for own in (0.0, 0.5, 1.0):
        weight = torch.ones(40).index_fill(0, torch.tensor([0]), own)
        error[own] = ((pairs.exp() * weight).mean(1).log() - truth).mean().item()
    assert error[0.0] < -0.1 and abs(error[0.5]) < 0.05 and error[1.0] > 0.15


def test_at_the_truth_the_bounds_gradient_has_no_noise():
    # q is N(0, I) before training; mixing samples beyond count leave q's density exact
    target = targets.GaussianMixture(torch.zeros(1, 2), 1.0)
    options = {"layers": 1, "objective": "lb", "mixing": 20_000, "path_steps": 0}
    config = InferConfig(**SMALL | options)
    config = resolved(config, target)
    networks = make_networks(config, target)
    pool = objectives.roll_out(networks.family, config, 1, 1)
    loss, _ = objectives.student_loss(networks, config, pool, 1, rng(0, "noise"))
    loss.backward()
    gradient = networks.family[1].log_scale.grad
    # with the parameters' own part it would be 1 / 2 sqrt(2 / 16) on each side
    assert gradient.abs().max() < 0.02


def test_averaged_layers_trail_those_that_train():
    kept = {}
    for ema in (0.0, 0.99):
        family = fit(targets.banana(), 2, False, **SMALL | {"steps": 3}, ema=ema, objective="lb")
        kept[ema] = family.state_dict()
    # after 3 updates 0.99 is ramped to at most 3/12: the averages still lag
    assert any(not kept[0.0][name].equal(kept[0.99][name]) for name in kept[0.0])


def test_the_kernels_width_is_in_medians_of_the_samples_distances(monkeypatch):
    seen = []
    loss = objectives.kernel_stein_loss
    monkeypatch.setattr(
        objectives, "kernel_stein_loss", lambda *a: seen.append((a[0], a[3])) or loss(*a)
    )
    for width in (1.0, 0.3):
        fit(targets.x_shape(), 2, False, **SMALL | {"layers": 1, "objective": "ksivi", "steps": 1},
            kernel_width=width)  # fmt: skip
    for (x, bandwidth), width in zip(seen, (1.0, 0.3), strict=True):
        median = torch.pdist(x.detach()).median()
        assert bandwidth.item() == pytest.approx(width * median.item(), rel=0.01)


def test_all_layers_train_together_or_one_after_another_from_the_base():
    config = InferConfig(**SMALL | {"steps": 2, "order": "sequential"})
    config = resolved(config, targets.x_shape())
    networks = make_networks(config, targets.x_shape())
    before = {name: t.clone() for name, t in networks.family.state_dict().items()}
    first = first_round(config)
    measured = play_round(networks, config, first)
    changed = {n for n, t in networks.family.state_dict().items() if not t.equal(before[n])}
    assert "divergence_2" in measured and "divergence_1" not in measured
    assert changed and all(name.startswith("layers.1.") for name in changed)


def test_in_sequential_order_fake_scores_are_warmed_up_before_every_layer(monkeypatch):
    options = {"objective": "reverse-kl", "layers": 2, "order": "sequential"}
    options |= {"fake_updates": 2, "fake_warmup": 6}
    seen, fake_loss, student_loss = [], rounds.fake_loss, rounds.student_loss

    def fake(networks, config, pool, k, rows, *rest):
        seen.append(("fake", k))
        return fake_loss(networks, config, pool, k, rows, *rest)

    def student(networks, config, pool, k, *rest):
        seen.append(("step", k))
        return student_loss(networks, config, pool, k, *rest)

    monkeypatch.setattr(rounds, "fake_loss", fake)
    monkeypatch.setattr(rounds, "student_loss", student)
    fit(targets.x_shape(), 2, False, **SMALL | options)
    own = [("fake",)] * 6 + ([("fake",)] * 2 + [("step",)]) * 2
    assert seen == [(*what, k) for k in (2, 1) for what in own]


def test_every_fake_score_update_takes_the_next_rows_of_the_roll_out(monkeypatch):
    seen, fake_loss = [], rounds.fake_loss

    def listen(networks, config, pool, k, rows, *rest):
        seen.append((len(pool.x[k]), rows))
        return fake_loss(networks, config, pool, k, rows, *rest)

    monkeypatch.setattr(rounds, "fake_loss", listen)
    options = {"layers": 1, "objective": "reverse-kl", "fake_updates": 5, "fake_warmup": 5}
    fit(targets.x_shape(), 2, False, **SMALL | options | {"steps": 1})
    (count, _), rows = seen[0], torch.cat([rows for _, rows in seen[:5]])
    assert count == 48 and torch.equal(rows, torch.arange(5 * 16) % count)


def test_a_layers_scale_moves_at_ten_times_its_weights_rate():
    config = resolved(InferConfig(**SMALL | {"layers": 1, "objective": "lb"}), targets.x_shape())
    networks = make_networks(config, targets.x_shape())
    layer = networks.family[1]
    before = layer.log_scale.clone(), layer.net[-1].bias[:2].clone()
    play_round(networks, config, first_round(config))
    # Adam's first step is the rate itself, whatever the gradient
    for new, old, times in zip(
        (layer.log_scale, layer.net[-1].bias[:2]), before, (10, 1), strict=True
    ):
        rate = torch.full((2,), times * student_rate(config, 0))
        torch.testing.assert_close((new - old).abs(), rate, rtol=1e-3, atol=0)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_a_fake_scores_loss_is_weighted_by_the_layers_variance_up_to_one(scale):
    options = {"layers": 1, "objective": "reverse-kl", "frame": "gaussian", "bridge": "geometric"}
    config = InferConfig(**SMALL | options, start_scale=scale, base_scale=4.0, sines=0,
                         student_rate=1e-3)  # fmt: skip
    networks = make_networks(config, targets.x_shape(), (torch.zeros(2), torch.eye(2)))
    pool = objectives.roll_out(networks.family, config, 1, 1)
    noise = torch.randn(16, 2, generator=rng(0, "noise"))
    found = objectives.fake_loss(networks, config, pool, 1, torch.arange(16), rng(0, "noise"))
    # whitened and untrained the fake score is the base's, x / base_scale^2
    x = pool.normal[1].mean[:16] + scale * noise
    gap = x / 4.0**2 - noise / scale
    loss = pool.weight[:16] * min(scale**2, 1) * gap.square().sum(1)
    assert found.item() == pytest.approx(loss.mean().item() / 2, rel=1e-4)


def test_a_function_is_fitted_in_three_lines():
    family = fit(lambda x: -x.square().sum(1), 3, False, **SMALL, objective="lb")
    assert family.sample(7).shape == (7, 3)
    assert family.sample(7, seed=1).equal(family.sample(7, seed=1))


@pytest.mark.parametrize("objective", ["lb", "sm"])
def test_a_fit_goes_on_after_a_draw_so_far_out_that_the_density_overflows(objective):
    calls = []

    def density(x):
        calls.append(len(x))
        overflow = 1e38 * 1e38 if len(calls) in faults else 1.0
        return -(overflow * x.square().sum(1)) / 2

    faults = ()
    fit(density, 2, False, **SMALL, objective=objective)
    faults, calls = (len(calls) - 1,), []  # within the last step
    family = fit(density, 2, False, **SMALL, objective=objective)
    assert len(calls) > faults[0] and family.sample(9).isfinite().all()


def test_settings_of_a_fit_that_mean_nothing_are_refused():
    def density(x):
        return -x.square().sum(1)

    with pytest.raises(HsiviError, match="--layers 0 must be at least 1"):
        fit(density, 2, layers=0)
    with pytest.raises(HsiviError, match="--objective LB is none of auto, lb"):
        fit(density, 2, objective="LB")
    with pytest.raises(HsiviError, match="fit has no minutes"):
        fit(density, 2, minutes=1.0)
    for target, dim in ((targets.banana(), 7), (density, 0)):
        with pytest.raises(HsiviError, match=f"dim is {dim}"):
            fit(target, dim)


@pytest.mark.parametrize(
    ("target", "options", "expected"),
    [
        (targets.banana(), {}, ("diffusion", "none", "lb", 3e-3)),
        (targets.banana(), {"objective": "sm"}, ("diffusion", "none", "sm", 1e-3)),
        (targets.banana(), {"base_scale": 2.0}, ("geometric", "none", "lb", 3e-3)),
        (targets.banana(), {"frame": "gaussian"}, ("geometric", "gaussian", "lb", 3e-3)),
        (targets.circles(), {"student_rate": 1e-4}, ("diffusion", "none", "lb", 1e-4)),
        (targets.funnel(), {}, ("geometric", "none", "lb", 3e-3)),
        (targets.funnel(3), {}, ("geometric", "gaussian", "reverse-kl", 1e-3)),
    ],
)
def test_what_is_left_to_the_target_is_decided_by_its_coordinates(target, options, expected):
    config = resolved(InferConfig(**options), target)
    assert (config.bridge, config.frame, config.objective, config.student_rate) == expected
