"""Rounds of training: what is recovered, and by which settings."""

import pytest
import torch

from hsivi_cli.config import InferConfig
from hsivi_cli.density import rounds, targets
from hsivi_cli.density.family import Family
from hsivi_cli.density.fit import first_round, fit
from hsivi_cli.density.rounds import make_networks, play_round, resolved
from hsivi_cli.errors import HsiviError
from hsivi_cli.method.steps import rng, student_rate

SMALL = {"layers": 2, "width": 16, "depth": 1, "batch_size": 16, "steps": 4, "fake_warmup": 2}
MEAN, COV = torch.tensor([0.8, -0.5]), torch.tensor([[1.0, 0.6], [0.6, 0.8]])


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "sm", "layers": 1},
        {"objective": "sm", "layers": 2},
        {"objective": "lb", "layers": 1},
        {"objective": "lb", "layers": 2, "order": "sequential", "noise_dim": 1},
        {"objective": "ksivi", "layers": 1, "levels": "own"},
        {"objective": "reverse-kl", "layers": 1},
        {"objective": "reverse-kl", "layers": 2},
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
def test_a_gaussians_mean_and_covariance_are_recovered(options):
    target = targets.GaussianMixture(MEAN[None], COV)
    family = fit(
        target, 2, False, width=32, depth=1, batch_size=128, steps=400, student_rate=3e-3,
        fake_rate=3e-3, fake_updates=5, mixing=50, sines=0, **options,
    )  # fmt: skip
    x = family.sample(20_000)
    # 400 updates of 128 samples leave some .05 in the weights; sampling adds 3/sqrt(20,000) = .02
    torch.testing.assert_close(x.mean(0), MEAN, rtol=0, atol=0.12)
    torch.testing.assert_close(x.T.cov(), COV, rtol=0, atol=0.17)


def test_falling_levels_share_mass_out_between_modes_that_lie_apart():
    # two modes 12 sds apart, of one quarter and three: at its own level alone a layer keeps the
    # shares that they had when they came apart, .56 to .62 over seeds, where .75 to .77 is right
    target = targets.GaussianMixture(
        torch.tensor([[-1.2, 0.0], [1.2, 0.0]]), 0.04, torch.tensor([0.25, 0.75])
    )
    share = {}
    for levels in ("falling", "own"):
        family = fit(target, 2, False, layers=1, width=32, depth=1, batch_size=128, mixing=100,
                     steps=400, student_rate=3e-3, sines=4, levels=levels)  # fmt: skip
        share[levels] = (family.sample(20_000)[:, 0] > 0).float().mean().item()
    assert abs(share["falling"] - 0.75) < 0.04 and abs(share["own"] - 0.75) > 0.1


def test_the_first_layer_of_two_ends_at_the_bridges_own_marginal():
    target = targets.GaussianMixture(MEAN[None], COV)
    family = fit(target, 2, False, layers=2, width=32, depth=1, batch_size=128, steps=400,
                 student_rate=3e-3, mixing=50, sines=0, objective="lb")  # fmt: skip
    x = family.marginals(20_000)[1]
    # p_1 is the target at alpha_bar 3/4; tolerances as above
    torch.testing.assert_close(x.mean(0), 0.75**0.5 * MEAN, rtol=0, atol=0.12)
    torch.testing.assert_close(x.T.cov(), 0.75 * COV + 0.25 * torch.eye(2), rtol=0, atol=0.17)


def test_the_bounds_mixing_samples_are_none_of_the_batch(monkeypatch):
    seen, bound = [], rounds.lower_bound_loss
    monkeypatch.setattr(
        rounds,
        "lower_bound_loss",
        lambda own, others, p: seen.append(others) or bound(own, others, p),
    )
    pairs = rounds.pair_log_density
    means = []
    monkeypatch.setattr(
        rounds, "pair_log_density", lambda x, z, std: means.append((x, z)) or pairs(x, z, std)
    )
    fit(
        targets.banana(), 2, False, **SMALL | {"layers": 1, "objective": "lb", "steps": 1}, mixing=8
    )
    (others,), ((_, z),) = seen, means
    assert others.shape == (16, 8)
    # an untrained layer keeps x_1: a row that was the batch's own would lie within noise of it
    family = Family(2, resolved(InferConfig(**SMALL | {"layers": 1}), targets.banana()))
    start, _, _ = family.start(24, rng(0, 1, "roll-out"))
    torch.testing.assert_close(z, family.keep * start[16:])


def test_averaged_layers_trail_those_that_train():
    kept = {}
    for ema in (0.0, 0.99):
        family = fit(targets.banana(), 2, False, **SMALL | {"steps": 3}, ema=ema, objective="lb")
        kept[ema] = family.state_dict()
    # after 3 updates 0.99 is ramped to at most 3/12: the averages still lag
    assert any(not kept[0.0][name].equal(kept[0.99][name]) for name in kept[0.0])


def test_the_kernels_width_is_in_medians_of_the_samples_distances(monkeypatch):
    seen = []
    loss = rounds.kernel_stein_loss
    monkeypatch.setattr(
        rounds, "kernel_stein_loss", lambda *a: seen.append((a[0], a[3])) or loss(*a)
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
    before = layer.log_scale.clone(), layer.net[-1].bias.clone()
    play_round(networks, config, first_round(config))
    # Adam's first step is the rate itself, whatever the gradient
    for new, old, times in zip((layer.log_scale, layer.net[-1].bias), before, (10, 1), strict=True):
        rate = torch.full((2,), times * student_rate(config, 0))
        torch.testing.assert_close((new - old).abs(), rate, rtol=1e-3, atol=0)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_a_fake_scores_loss_is_weighted_by_the_layers_variance_up_to_one(scale):
    options = {"layers": 1, "objective": "reverse-kl", "frame": "gaussian", "bridge": "geometric"}
    config = InferConfig(**SMALL | options, start_scale=scale, base_scale=4.0, sines=0)
    networks = make_networks(config, targets.x_shape(), (torch.zeros(2), torch.eye(2)))
    pool = rounds.roll_out(networks, config, 1, 1)
    noise = torch.randn(16, 2, generator=rng(0, "noise"))
    found = rounds.fake_loss(networks, config, pool, 1, torch.arange(16), noise, 1)
    # whitened and untrained the fake score is the base's, x / base_scale^2
    x = pool.mean[1][:16] + scale * noise
    gap = x / 4.0**2 - noise / scale
    assert found.item() == pytest.approx(
        (min(scale**2, 1) * gap.square().sum(1)).mean().item() / 2, rel=1e-4
    )


def test_a_function_is_fitted_in_three_lines():
    family = fit(lambda x: -x.square().sum(1), 3, False, **SMALL, objective="lb")
    assert family.sample(7).shape == (7, 3)
    assert family.sample(7, seed=1).equal(family.sample(7, seed=1))


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
