"""Inference of densities: what is recovered, what lies in a run's folder, how it stops and goes
on.
"""

import json
import math
import os
import shutil
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from command import finite, hsivi, refusal, rows, tree

from hsivi_cli.config import InferConfig
from hsivi_cli.density import rounds as inference
from hsivi_cli.density import targets
from hsivi_cli.density.bridge import Bridge, level_of, noised, parse_lambdas
from hsivi_cli.density.family import Family, free_chain
from hsivi_cli.density.fit import first_round, fit
from hsivi_cli.density.posteriors import POSTERIORS, abalone
from hsivi_cli.density.rounds import lower_bound, make_networks, play_round, resolved
from hsivi_cli.errors import HsiviError
from hsivi_cli.files.checkpoint import checkpoints
from hsivi_cli.files.run import holding
from hsivi_cli.files.whole import write_tensors
from hsivi_cli.method.chain import walk
from hsivi_cli.method.steps import rng
from hsivi_cli.verbs import infer as infer_module
from hsivi_cli.verbs.infer import load

SMALL = {"layers": 2, "width": 16, "depth": 1, "batch_size": 16, "steps": 4, "fake_warmup": 2}
FLAGS = (
    *("--layers", 2, "--width", 16, "--depth", 1, "--batch-size", 16, "--steps", 4),
    *("--fake-warmup", 2, "--fake-updates", 1, "--mixing", 8, "--count", 500),
)


def infer(target, out, *options, **more):
    """`hsivi infer TARGET --out OUT`, small unless the options say otherwise."""
    return hsivi("infer", target, "--out", out, *FLAGS, *options, **more)


def refused(target, out, *options):
    return refusal("infer", target, "--out", out, *FLAGS, *options)


# ---- the mathematics -----------------------------------------------------------------------------


def test_the_walk_without_a_schedule_keeps_x_and_adds_network_and_noise():
    family = Family(3, InferConfig(layers=2, noise_dim=2, width=8, depth=1, sines=1))
    for parameter in family.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    rng = torch.Generator().manual_seed(2)
    x, noise, u = family.start(5, rng)
    expected = x
    for k, e in zip((2, 1), noise, strict=True):
        inputs = torch.cat([expected, u[:, k - 1]], 1)
        kept = 0.75**0.5 * expected  # start_scale .5 of base_scale 1
        expected = kept + family[k].net(inputs) + family[k].log_scale.exp() * e
    last = list(family.visits(x, noise, u))[-1]
    torch.testing.assert_close(last.mean + family[1].log_scale.exp() * noise[-1], expected)
    states = list(walk(lambda x, *rest: 0 * x, free_chain(2, 1.0), x, noise, family.log_scale))
    torch.testing.assert_close(states[-1].mean, x + family[2].log_scale.exp() * noise[0])


def test_untrained_marginals_are_the_base_and_untrained_samples_the_best_gaussian():
    config = InferConfig(layers=3, base_scale=2.0, start_scale=1.2, width=4, sines=0)
    states = Family(2, config).marginals(50_000)
    # 4 standard errors of a sd of 2
    torch.testing.assert_close(states.std(1), torch.full((4, 2), 2.0), rtol=0, atol=0.026)
    mean, cov = torch.tensor([5.0, -3.0, 0.0]), torch.diag(torch.tensor([9.0, 1.0, 0.04]))
    target = targets.GaussianMixture(mean[None], cov)
    config = resolved(InferConfig(layers=2, width=4, bridge="geometric"), target)
    x = make_networks(config, target).ema.sample(50_000)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.1)  # the fit is within .01 sd
    torch.testing.assert_close(x.T.cov(), cov, rtol=0.05, atol=0.05)


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


def test_the_target_shares_of_the_layers_are_those_given_or_equal_steps():
    assert parse_lambdas("1,0.3,0", 2, "geometric") == (1, 0.3, 0)
    assert parse_lambdas("auto", 4, "geometric") == (1, 0.75, 0.5, 0.25, 0)
    assert parse_lambdas("auto", 2, "diffusion") == (1, 0.75, 0)  # sigma 0, 1/2, 1


@pytest.mark.parametrize("order", ["joint", "sequential"])
def test_a_level_falls_from_the_layer_above_to_its_own(order):
    config = InferConfig(steps=100, layers=2, order=order, bridge="diffusion")
    lambdas = (1, 0.75, 0)  # sigma 0, 1/2, 1
    steps = range(100) if order == "joint" else range(50, 100)
    found = [level_of(config, lambdas, 1, step) for step in steps]
    sigma = [math.sqrt(1 - level) for level in found]
    falling = round(0.5 * len(sigma))
    assert sigma[0] == pytest.approx(0.5) and set(found[falling:]) == {1}
    np.testing.assert_allclose(np.diff(sigma[:falling]), -0.5 / falling, rtol=1e-6)
    assert 0 < level_of(config, lambdas, 2, 0) < 0.01  # x_K's own level has no signal
    assert level_of(config, lambdas, 1, -3) == 0.75  # while fake scores warm up
    for other in ({"levels": "own"}, {"bridge": "geometric"}):
        assert level_of(replace(config, **other), lambdas, 1, 0) == 1


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
    seen, bound = [], inference.lower_bound_loss
    monkeypatch.setattr(
        inference,
        "lower_bound_loss",
        lambda own, others, p: seen.append(others) or bound(own, others, p),
    )
    pairs = inference.pair_log_density
    means = []
    monkeypatch.setattr(
        inference, "pair_log_density", lambda x, z, std: means.append((x, z)) or pairs(x, z, std)
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


def test_the_lower_bound_of_a_normalised_density_is_below_zero_and_tight_when_fitted():
    target = targets.GaussianMixture(torch.zeros(1, 2), 1.0)  # untrained it is the base
    family = Family(2, InferConfig(layers=1, start_scale=0.5, width=4, sines=0))
    found = lower_bound(family, target, 2000, 2000)
    assert -0.02 < found["lower_bound"] < 3 * found["standard_error"]
    assert found["importance_ess"] > 1900
    loose = lower_bound(family, target, 2000, 5)["lower_bound"]
    assert loose < found["lower_bound"] - 0.1


def test_the_kernels_width_is_in_medians_of_the_samples_distances(monkeypatch):
    seen = []
    loss = inference.kernel_stein_loss
    monkeypatch.setattr(
        inference, "kernel_stein_loss", lambda *a: seen.append((a[0], a[3])) or loss(*a)
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
    seen, fake_loss, student_loss = [], inference.fake_loss, inference.student_loss

    def fake(networks, config, pool, k, rows, *rest):
        seen.append(("fake", k))
        return fake_loss(networks, config, pool, k, rows, *rest)

    def student(networks, config, pool, k, *rest):
        seen.append(("step", k))
        return student_loss(networks, config, pool, k, *rest)

    monkeypatch.setattr(inference, "fake_loss", fake)
    monkeypatch.setattr(inference, "student_loss", student)
    fit(targets.x_shape(), 2, False, **SMALL | options)
    own = [("fake",)] * 6 + ([("fake",)] * 2 + [("step",)]) * 2
    assert seen == [(*what, k) for k in (2, 1) for what in own]


def test_every_fake_score_update_takes_the_next_rows_of_the_roll_out(monkeypatch):
    seen, fake_loss = [], inference.fake_loss

    def listen(networks, config, pool, k, rows, *rest):
        seen.append((len(pool.x[k]), rows))
        return fake_loss(networks, config, pool, k, rows, *rest)

    monkeypatch.setattr(inference, "fake_loss", listen)
    options = {"layers": 1, "objective": "reverse-kl", "fake_updates": 5, "fake_warmup": 5}
    fit(targets.x_shape(), 2, False, **SMALL | options | {"steps": 1})
    (count, _), rows = seen[0], torch.cat([rows for _, rows in seen[:5]])
    assert count == 48 and torch.equal(rows, torch.arange(5 * 16) % count)


def test_a_function_is_fitted_in_three_lines():
    family = fit(lambda x: -x.square().sum(1), 3, False, **SMALL, objective="lb")
    assert family.sample(7).shape == (7, 3)
    assert family.sample(7, seed=1).equal(family.sample(7, seed=1))


# ---- runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["reverse-kl", "sm", "lb", "ksivi"])
def test_a_run_leaves_its_layers_samples_summary_and_plots(tmp_path, objective):
    infer("two-gaussians", tmp_path / "y", "--objective", objective)
    names = {path.name for path in (tmp_path / "y").iterdir()} - {"posterior.nc"}
    assert names == {
        *("model.safetensors", "infer.json", "samples.npz", "summary.json", "layers.png"),
        *("metrics.jsonl", "checkpoint"),
    }
    x = np.load(tmp_path / "y" / "samples.npz")["x"]
    assert x.shape == (500, 2)
    summary = json.loads((tmp_path / "y" / "summary.json").read_text())
    np.testing.assert_allclose(summary["mean"], x.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(summary["sd"], x.std(0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(summary["quantiles"]["0.5"], np.median(x, 0), rtol=1e-5)
    assert finite(summary["divergence"])
    metrics = rows(tmp_path / "y" / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4] and all(map(finite, metrics))
    np.testing.assert_array_equal(load(tmp_path / "y").sample(500).numpy(), x)


def test_more_coordinates_have_marginals_and_pairs(tmp_path):
    infer("logistic-waveform", tmp_path / "y", "--objective", "lb")
    assert {"pairs.png", "marginals.png"} <= {p.name for p in (tmp_path / "y").iterdir()}


@pytest.mark.parametrize("objective", ["reverse-kl", "lb"])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(tmp_path, monkeypatch, objective):
    options = ("--objective", objective, "--bridge", "diffusion")
    infer("circles", tmp_path / "whole", *options)
    played = []

    def play_and_interrupt(networks, config, round_):
        played.append(round_)
        if len(played) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return play_round(networks, config, round_)

    with monkeypatch.context() as patch:
        patch.setattr(infer_module, "play_round", play_and_interrupt)
        said = infer("circles", tmp_path / "parts", *options, exit_code=130)
    assert "type the same line again" in said.stderr
    infer("circles", tmp_path / "parts", *options)
    for name in ("model.safetensors", "metrics.jsonl", "samples.npz", "summary.json"):
        same = [(tmp_path / part / name).read_bytes() for part in ("whole", "parts")]
        assert same[0] == same[1], name


def test_a_finished_run_goes_on_with_more_steps_and_not_with_fewer(tmp_path):
    infer("banana", tmp_path / "y")
    first = json.loads((tmp_path / "y" / "infer.json").read_text())
    infer("banana", tmp_path / "y", "--steps", 6)
    assert [row["step"] for row in rows(tmp_path / "y" / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    info = json.loads((tmp_path / "y" / "infer.json").read_text())
    assert info["step"] == 6
    assert info["cpu_seconds"] > first["cpu_seconds"] > 0
    assert "begun with --steps 6, not 4" in refused("banana", tmp_path / "y")


def test_a_framed_run_goes_on_in_its_frame_without_searching_it_anew(tmp_path, monkeypatch):
    infer("logistic-waveform", tmp_path / "y")
    frame = load(tmp_path / "y").factor
    assert frame.shape == (22, 22) and not frame.equal(torch.eye(22))
    monkeypatch.setattr("hsivi_cli.density.rounds.fit_gaussian", None)
    infer("logistic-waveform", tmp_path / "y", "--steps", 5)
    assert load(tmp_path / "y").factor.equal(frame)


def test_compare_measures_all_from_exact_draws_or_from_nuts(module, tmp_path):
    pytest.importorskip("nutpie")
    options = ("--chains", 2, "--draws", 100)
    infer("two-gaussians", tmp_path / "y")
    said = infer("two-gaussians", tmp_path / "y", "--compare", *options).stdout
    assert said.startswith("measured from exact draws") and "mean-field" in said
    found = json.loads((tmp_path / "y" / "compare.json").read_text())
    names = [row["name"] for row in found["rows"]]
    assert names == ["hsivi", "full-rank", "mean-field", "nuts"]
    assert all({"js", "w1", "mean_z", "sd_error"} <= row.keys() for row in found["rows"])
    assert found["rows"][3].keys() >= {"rhat", "ess"}
    trained = json.loads((tmp_path / "y" / "infer.json").read_text())["cpu_seconds"]
    assert found["rows"][0]["cpu_seconds"] > trained
    assert (tmp_path / "y" / "compare.png").is_file()
    infer(f"{module}:tilted", tmp_path / "z", "--dim", 3, "--compare", *options)
    full, diagonal, chains = json.loads((tmp_path / "z" / "compare.json").read_text())["rows"][1:]
    # correlations of .9: the diagonal Gaussian is .44 as wide as it should be, the full one exact;
    # 200 draws of NUTS know a sd to 5 % each
    assert full["sd_error"] < 0.25 < 0.4 < diagonal["sd_error"]
    assert "mean_error" not in chains


def test_the_same_command_on_a_finished_run_changes_nothing(tmp_path):
    infer("banana", tmp_path / "y", "--objective", "lb")
    before = (tmp_path / "y" / "model.safetensors").read_bytes()
    infer("banana", tmp_path / "y", "--objective", "lb")
    assert (tmp_path / "y" / "model.safetensors").read_bytes() == before


def test_a_finished_run_without_its_checkpoint_is_left_alone(tmp_path):
    infer("banana", tmp_path / "y")
    shutil.rmtree(tmp_path / "y" / "checkpoint")
    before = tree(tmp_path / "y")
    told = refused("banana", tmp_path / "y", "--steps", 9)
    assert "without its checkpoint" in told and tree(tmp_path / "y") == before


@pytest.mark.parametrize(
    "tensors",
    [
        {"weight": torch.zeros(3)},
        {"family.centre": torch.zeros(5), "family.factor": torch.zeros(5, 5)},
    ],
    ids=["another network", "another frame"],
)
def test_a_checkpoint_of_something_else_is_one_line(tensors, module, tmp_path):
    infer(f"{module}:tilted", tmp_path / "y", "--dim", 3)
    (newest,) = checkpoints(tmp_path / "y" / "checkpoint")
    write_tensors(newest / "tensors.safetensors", tensors)
    before = tree(tmp_path / "y")
    told = refused(f"{module}:tilted", tmp_path / "y", "--dim", 3, "--steps", 9)
    assert f"{newest} is damaged" in told and "another --out" in told
    assert tree(tmp_path / "y") == before


def test_a_folder_of_another_run_is_refused(tmp_path):
    infer("banana", tmp_path / "y", "--objective", "sm")
    assert "begun with --objective sm, not lb" in refused("banana", tmp_path / "y")
    assert "another target (banana" in refused("x-shape", tmp_path / "y")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    assert "no run of hsivi infer" in refused("banana", tmp_path / "other")


# ---- bad input -----------------------------------------------------------------------------------

MODULE = """
import torch
def good(x): return -x.square().sum(1)
def steep(x): return -x[:, 0].square() + x[:, 1].where(x[:, 1] > 0, x[:, 1] * torch.nan)
def tilted(x): return -(10 * x.square().sum(1) - 9 / 2.8 * x.sum(1).square()) / 2
def wide(x): return -x.square()
def held(x): return -x.detach().square().sum(1)
def lost(x): return {}[x.shape[1]]
def mute(x): raise AssertionError
def cut(x): return torch.where(x[:, 0] > 0, -x.square().sum(1), -torch.inf)
def touchy(x):
    if x.abs().max() > 5: raise ValueError("too far\\nand more")
    return -x.square().sum(1) / 200
def fenced(x): return torch.where(x.abs().amax(1) < 6, -x.square().sum(1) / 200, -torch.inf)
class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return -x.square().sum(1)
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g): return -2 * ctx.saved_tensors[0] * g[:, None]
once = Once.apply
def noisy(x): return -(x * (1 + 0.1 * torch.rand(len(x), 1))).square().sum(1)
number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module of log densities, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_density.py").write_text(MODULE)
    (tmp_path / "my_broken.py").write_text("import no_such_package")
    (tmp_path / "my_script.py").write_text("raise SystemExit('usage: my_script')")
    return "my_density"


def test_a_function_of_the_users_is_a_target(module, tmp_path):
    infer(f"{module}:good", tmp_path / "y", "--dim", 3, "--objective", "lb")
    assert np.load(tmp_path / "y" / "samples.npz")["x"].shape == (500, 3)


def test_a_run_is_not_resumed_on_a_density_that_has_changed(module, tmp_path):
    infer(f"{module}:good", tmp_path / "y", "--dim", 3)
    before = tree(tmp_path / "y")
    file = tmp_path / "my_density.py"
    file.write_text(
        MODULE.replace("return -x.square().sum(1)", "return 5 - 2 * x.square().sum(1)", 1)
    )
    sys.modules.pop(module)
    told = refused(f"{module}:good", tmp_path / "y", "--dim", 3)
    assert "it was another density" in told and tree(tmp_path / "y") == before
    # a constant is no change
    file.write_text(MODULE.replace("return -x.square().sum(1)", "return 5 - x.square().sum(1)", 1))
    sys.modules.pop(module)
    infer(f"{module}:good", tmp_path / "y", "--dim", 3)


def test_a_target_that_fails_later_is_one_line_too(module, tmp_path):
    told = refused(f"{module}:touchy", tmp_path / "y", "--dim", 3)
    assert told.endswith("ValueError: too far") and "Gaussian" not in told
    options = ("--dim", 2, "--student-rate", 0.05, "--steps", 60, "--objective")
    assert "ValueError: too far" in refused(f"{module}:touchy", tmp_path / "z", *options, "lb")


@pytest.mark.parametrize("objective", ["lb", "reverse-kl"])
def test_samples_beyond_the_targets_support_are_told_of(module, tmp_path, objective):
    options = ("--dim", 2, "--objective", objective, "--student-rate", 0.05, "--steps", 200)
    told = refused(f"{module}:fenced", tmp_path / "y", *options, "--batch-size", 64)
    assert "log density is -inf at x = (" in told
    assert not (tmp_path / "y" / "summary.json").exists()


def test_what_a_users_module_sets_of_torchs_own_ends_with_its_import(module, tmp_path):
    (tmp_path / "my_doubles.py").write_text(
        "torch = __import__('torch')\n"
        + MODULE
        + """
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)
"""
    )
    infer("my_doubles:good", tmp_path / "y", "--dim", 2)
    x = np.load(tmp_path / "y" / "samples.npz")["x"]
    assert x.dtype == np.float32 and torch.is_grad_enabled()
    np.testing.assert_array_equal(load(tmp_path / "y").sample(500).numpy(), x)


def test_a_comparison_of_samples_that_are_no_more_goes(module, tmp_path):
    pytest.importorskip("nutpie")
    infer(f"{module}:good", tmp_path / "y", "--dim", 2, "--compare", "--chains", 2, "--draws", 20)
    about = json.loads((tmp_path / "y" / "compare.json").read_text())["about"]
    assert about["step"] == 4
    infer(f"{module}:good", tmp_path / "y", "--dim", 2)
    assert (tmp_path / "y" / "compare.json").exists()
    infer(f"{module}:good", tmp_path / "y", "--dim", 2, "--steps", 6)
    assert not list((tmp_path / "y").glob("compare.*"))
    assert json.loads((tmp_path / "y" / "summary.json").read_text())["step"] == 6


def test_a_run_killed_at_its_first_export_goes_on(tmp_path):
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / ".infer.json.77.tmp.json").write_text("{")
    infer("banana", tmp_path / "y")
    assert not list((tmp_path / "y").glob(".*"))


def test_a_density_that_is_random_is_resumed(module, tmp_path):
    for steps in (2, 4):
        infer(f"{module}:noisy", tmp_path / "y", "--dim", 2, "--steps", steps)


def test_a_second_process_in_a_runs_folder_is_refused(tmp_path):
    with holding(tmp_path / "y"):
        assert "another process runs in" in refused("banana", tmp_path / "y")
    infer("banana", tmp_path / "y")
    (tmp_path / "y" / ".model.safetensors.77.tmp.safetensors").write_text("half")
    before = tree(tmp_path / "y")
    with holding(tmp_path / "y"):
        refused("banana", tmp_path / "y")
    assert tree(tmp_path / "y") == before
    infer("banana", tmp_path / "y")
    assert not list((tmp_path / "y").glob(".*"))


def test_a_target_that_cannot_be_used_is_refused_before_anything_is_written(module, tmp_path):
    out = tmp_path / "y"
    line = refused(f"{module}:steep", out, "--dim", 2)
    assert "gradient is nan in coordinate 1 at x = (" in line
    line = refused(f"{module}:wide", out, "--dim", 2)
    assert "one number a point, [64], not [64, 2]" in line
    assert "no gradient in x" in refused(f"{module}:held", out, "--dim", 2)
    assert "[64, 2]: KeyError: 2" in refused(f"{module}:lost", out, "--dim", 2)
    assert "[64, 2]: AssertionError" in refused(f"{module}:mute", out, "--dim", 2)
    assert "log density is -inf at x = (-" in refused(f"{module}:cut", out, "--dim", 2)
    assert "needs --dim" in refused(f"{module}:good", out)
    assert "no callable 'number'" in refused(f"{module}:number", out, "--dim", 2)
    line = refused("my_broken:f", out, "--dim", 2)
    assert "ModuleNotFoundError: No module named 'no_such_package'" in line
    assert "SystemExit: usage" in refused("my_script:f", out, "--dim", 2)
    for objective in ("sm", "ksivi"):
        line = refused(f"{module}:once", out, "--dim", 2, "--objective", objective)
        assert "differentiates the target's score" in line
    for name in ("bananas", ":f", "banana:"):
        assert "is no target: banana" in refused(name, out, "--dim", 2)
    assert "--base-scale 2 goes with" in refused("circles", out, "--base-scale", 2)
    assert "has 2 coordinates" in refused("banana", out, "--dim", 3)
    assert "--bridge diffusion needs" in refused("banana", out, "--bridge", "diffusion")
    framed = ("--bridge", "diffusion", "--frame", "gaussian")
    assert "goes with --frame none" in refused("circles", out, *framed)
    assert "--device" in refused("banana", out, "--device", "nowhere")
    assert not out.exists()


@pytest.mark.parametrize("text", ["1,0.5", "1,0.2,0.5", "0.9,0.5,0", "1,0.5,0.1", "1,x,0"])
def test_lambdas_out_of_order_are_refused(tmp_path, text):
    assert f"--lambdas {text}" in refused("banana", tmp_path / "y", "--lambdas", text).replace(
        "'", ""
    )


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--layers", 0), ("--batch-size", 1), ("--start-scale", 0), ("--ema", 1), ("--sines", 99)],
)
def test_numbers_that_mean_nothing_are_refused(tmp_path, flag, value):
    assert refused("banana", tmp_path / "y", flag, value).startswith(f"error: {flag} {value}")
    with pytest.raises(HsiviError, match="--layers 0 must be at least 1"):
        fit(lambda x: -x.square().sum(1), 2, layers=0)
    with pytest.raises(HsiviError, match="--objective LB is none of auto, lb"):
        fit(lambda x: -x.square().sum(1), 2, objective="LB")
    with pytest.raises(HsiviError, match="fit has no minutes"):
        fit(lambda x: -x.square().sum(1), 2, minutes=1.0)
    for target, dim in ((targets.banana(), 7), (lambda x: -x.square().sum(1), 0)):
        with pytest.raises(HsiviError, match=f"dim is {dim}"):
            fit(target, dim)


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path):
    said = infer(
        "banana", tmp_path / "y", "--objective", "lb", "--student-rate", 1e5, exit_code=1
    ).stderr.splitlines()[-1]
    assert said.startswith("error: the loss is not finite at step") and "lower" in said
    infer("banana", tmp_path / "y", "--objective", "lb")  # it kept nothing, so nothing binds


def test_without_scikit_learn_its_data_sets_say_how_to_have_them(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    line = refused("regression-diabetes", tmp_path / "y")
    assert "pip install 'hsivi[infer]'" in line


def test_the_packaged_data_have_the_sizes_that_are_said():
    pytest.importorskip("sklego")
    sizes = {name: make().dim for name, make in POSTERIORS.items()}
    # hidden units 10: 10 D + 10 + 10 + 1 + 1
    assert sizes == {
        "logistic-waveform": 22,
        "logistic-breast-cancer": 31,
        "logistic-digits": 62,
        "regression-diabetes": 122,
        "regression-abalone": 112,
    }
    inputs, rings = abalone()
    assert inputs.shape == (4177, 9) and rings.min() == 1 and rings.max() == 29
