"""The 25-Gaussian ground: its metrics, the solvers' recorded numbers, and a short training; and the
way from images to a teacher.
"""

import copy
import importlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from safetensors import safe_open
from safetensors.torch import load_file

from hsivi_cli.config import TrainConfig
from hsivi_cli.files.images import read_npz, save_npz
from hsivi_cli.method import schedule
from hsivi_cli.method.steps import rng
from hsivi_cli.metrics.detectors import load_detector
from hsivi_cli.metrics.statistics import load_statistics
from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.spacings import solver

ROOT = Path(__file__).parent.parent


def load_bench(name, folder="bench"):
    """bench/NAME.py as a module: bench/ is no package."""
    folder = str(ROOT / folder)
    sys.path.insert(0, folder)  # they import one another, as scripts of one folder do
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


bench = load_bench("gaussians25")
NO_SCALE = torch.zeros(1, 1)


def test_two_true_sets_read_the_floor():
    for seed in (1, 2, 3):
        row = bench.measure(bench.TARGET.sample(bench.COUNT, rng(seed, "true")))
        assert 0.007 < row["w1"] < 0.014
        assert 0.018 < row["js"] < 0.023
        assert row["near"] == pytest.approx(0.989, abs=0.003)


def test_a_lost_mode_shows_in_w1_and_js_but_not_in_the_near_share():
    x = bench.TARGET.sample(bench.COUNT, rng(1, "true"))
    x = x.clone()
    x[(x[:, 0] > 1) & (x[:, 1] > 1)] -= 2.8  # the corner's samples go to the opposite corner
    row = bench.measure(x)
    assert row["w1"] > 0.04 and row["js"] > 0.03 and row["near"] > 0.985


def test_coefficients_are_fitted_to_samples_from_the_starts_own_top():
    """Above it the same noise stands for another state, whose samples the start cannot reach."""
    start = solver("unipc-leading", 5, bench.SCHEDULER, bench.TABLE)
    many = load_bench("coefficients").many_calls(start, 20)
    assert many.time[-1] == start.time[-1] < 999 and many.nfe == 20
    assert many.alpha_bar[-1] == start.alpha_bar[-1] and many.alpha_bar[0] == 1


# recorded when the ground was set up; other latents move them by about .01
@pytest.mark.parametrize(
    ("name", "nfe", "w1", "js", "near"),
    [
        ("dpm++3-lu", 5, 0.199, 0.506, 0.286),
        ("dpm++2-lu", 5, 0.076, 0.369, 0.699),
        ("dpm++3-lu", 20, 0.013, 0.023, 0.976),
    ],
)
def test_solvers_with_the_exact_score_reach_their_recorded_numbers(name, nfe, w1, js, near):
    chain = solver(name, nfe, bench.SCHEDULER, bench.TABLE)
    row = bench.measure(bench.draw(bench.exact_eps, chain, NO_SCALE))
    assert row["w1"] == pytest.approx(w1, abs=0.01)
    assert row["js"] == pytest.approx(js, abs=0.01)
    assert row["near"] == pytest.approx(near, abs=0.01)


def test_the_untrained_quad_chain_reaches_its_recorded_numbers():
    (chain,) = bench.make_chains(TrainConfig(nfe="5", grid="quad", noise_share="0"))
    row = bench.measure(bench.draw(bench.exact_eps, chain, NO_SCALE))
    assert row["w1"] == pytest.approx(0.170, abs=0.01)
    assert row["js"] == pytest.approx(0.128, abs=0.01)
    assert row["near"] == pytest.approx(0.828, abs=0.01)


def test_the_fit_comes_near_to_the_exact_noise_prediction():
    # training would repair a bad start, so only this sees one; 300 narrow steps explain most of it
    network = bench.fit(bench.Bench(width=48, depth=2, mlp_steps=300), 0)
    x0 = bench.TARGET.sample(4000, rng(1, "fit test"))
    for time in (50, 200, 700):
        alpha_bar = bench.TABLE[torch.full((len(x0),), time)]
        noise = torch.randn(x0.shape, generator=rng(2, "fit test"))
        x = bench.schedule.add_noise(x0, noise, alpha_bar)
        exact = bench.TARGET.eps(x, alpha_bar)
        with torch.no_grad():
            gap = network(x, None, None, alpha_bar) - exact
        assert gap.square().mean() < 0.3 * exact.square().mean()


def test_a_short_training_moves_the_student_towards_the_truth_and_repeats():
    # seconds: a narrow network, few steps; the recipe's own settings otherwise
    small = bench.Bench(width=48, depth=2, mlp_steps=300)
    config = replace(TrainConfig(nfe="2"), **bench.recipe("2") | {"steps": 60, "batch_size": 256})
    torch.manual_seed(0)
    start = bench.fit(small, 0)
    networks = bench.networks_of(config, start)
    before = bench.measure_ema(networks)[2]
    after = bench.train(config, small, None)[2]
    again = bench.train(config, small, None)[2]
    assert after["w1"] < 0.6 * before["w1"]
    assert {k: after[k] for k in ("w1", "js", "near")} == {
        k: again[k] for k in ("w1", "js", "near")
    }


def test_a_network_told_its_row_starts_as_the_fit_in_every_row_and_hears_it():
    plain = bench.EpsMLP(16, 2)
    told = plain.told(3)
    x, level = torch.randn(6, 2), bench.TABLE[torch.arange(6) * 150]
    rows = torch.arange(6) % 3
    assert torch.equal(told(x, None, rows, level), plain(x, None, None, level))
    with torch.no_grad():
        told.rows.weight[1] += 1
    moved = (told(x, None, rows, level) != plain(x, None, None, level)).any(1)
    assert moved.tolist() == [False, True, False] * 2


def test_one_training_serves_several_budgets():
    small = bench.Bench(width=16, depth=2, mlp_steps=50)
    config = replace(TrainConfig(nfe="1,3"), **bench.recipe("1,3") | {"steps": 4, "batch_size": 64})
    networks = bench.networks_of(config, bench.fit(small, 0))
    assert networks.layer_conditioned and len(networks.fake_score.rows.weight) == 4
    row = {"w1", "js", "near", "seconds"}
    assert {nfe: told.keys() for nfe, told in bench.train(config, small, None).items()} == {
        1: row,
        3: row,
    }


def test_settings_are_read_with_their_fields_types():
    chosen = bench.settings(["steps=30", "a=1", "objective=score-matching", "width=9"], TrainConfig)
    assert chosen == {"steps": 30, "a": 1.0, "objective": "score-matching"}


def test_a_regressions_score_is_that_of_its_networks_by_hand():
    # zero weights predict the last bias; two draws, of biases -1 and 1 and precisions 1 and e
    draws, inputs, outputs = torch.zeros(2, 32), torch.randn(5, 1), torch.full((5,), 0.5)
    draws[:, -2:] = torch.tensor([[-1.0, 0.0], [1.0, 1.0]])
    found = load_bench("regression").score(draws, inputs, outputs)
    assert found["rmse"] == pytest.approx(0.5)
    each = [torch.distributions.Normal(m, s).log_prob(outputs[0]).exp()
            for m, s in ((-1.0, 1.0), (1.0, math.e**-0.5))]  # fmt: skip
    assert found["log_likelihood"] == pytest.approx((sum(each) / 2).log().item(), abs=1e-5)


def test_plane_figures_are_measured_by_seed_layers_objective_and_target(tmp_path, monkeypatch):
    figures = load_bench("figures2d")
    monkeypatch.setattr(figures, "COUNT", 2000)
    path = tmp_path / "rows.jsonl"
    words = "figures2d banana,funnel --layers 1,2 --objective lb --seeds 0,1 --json"
    monkeypatch.setattr(sys, "argv", [*words.split(), str(path), "steps=1", "width=8"])
    figures.main()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    keys = [(row["seed"], row["layers"], row["objective"], row["target"]) for row in rows]
    assert keys == list(product((0, 1), (1, 2), ["lb"], ["banana", "funnel"]))
    assert all(0 < row["floor_js"] < row["js"] < math.log(2) for row in rows)


def run_script(path, *words):
    done = subprocess.run([sys.executable, ROOT / path, *map(str, words)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_cifar_is_shrunk_by_averaging_and_left_alone_where_nothing_is_to_change(tmp_path):
    images = torch.randint(256, (5, 8, 8, 3), dtype=torch.uint8)
    save_npz(images, tmp_path / "all.npz")
    prepare = load_bench("cifar10").prepare
    source = str(tmp_path / "all.npz")
    assert prepare(source, "", 8, None, tmp_path / "same.npz") == source
    small = read_npz(prepare(source, "", 4, 3, tmp_path / "small.npz"))
    blocks = images[:3].view(3, 4, 2, 4, 2, 3).float().mean((2, 4))
    assert small.shape == (3, 4, 4, 3) and (small - blocks).abs().max() <= 0.5
    first = prepare(source, "", 8, 2, tmp_path / "first.npz")
    assert read_npz(first).equal(images[:2])


@pytest.mark.slow
def test_a_teacher_trained_in_two_parts_is_the_one_trained_at_once(tmp_path):
    save_npz(torch.randint(256, (20, 8, 8, 3), dtype=torch.uint8), tmp_path / "images.npz")
    options = ("--images", tmp_path / "images.npz", "--channels", "8,8", "--attention", 1, "--flip",
               "--batch-size", 4, "--device", "cpu", "--steps", 3)  # fmt: skip
    script = "weights/train_teacher.py"
    run_script(script, *options, "--out", tmp_path / "once")
    run_script(script, *options, "--out", tmp_path / "parts", "--minutes", 0)
    assert safe_open(tmp_path / "parts" / "state.safetensors", "pt").metadata()["step"] == "1"
    run_script(script, *options, "--out", tmp_path / "parts")
    once, parts = (load_file(tmp_path / d / "state.safetensors") for d in ("once", "parts"))
    assert all(once[name].equal(parts[name]) for name in once)
    assert load_teacher(str(tmp_path / "parts" / "pipeline")).shape == (3, 8, 8)


@pytest.mark.parametrize("prediction", schedule.PREDICTIONS)
def test_the_target_of_a_prediction_type_stands_for_the_noise(prediction):
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=prediction)
    x0, noise = torch.randn(2, 4, 1, 3, 3, generator=rng(0, "target"))
    time = torch.tensor([1, 200, 500, 900])
    target = load_bench("train_teacher", "weights").target_of(x0, noise, time, scheduler)
    x, table = scheduler.add_noise(x0, noise, time), scheduler.alphas_cumprod
    eps = schedule.to_eps(target, x, table[time], prediction)
    assert torch.allclose(eps, noise, atol=1e-3)  # of x0 at time 1, float32's last bits over sigma


@pytest.mark.parametrize("time", [1, 30, 400, 999])
def test_the_variance_loss_is_the_divergence_of_the_step_that_diffusers_takes(time):
    scheduler = DDPMScheduler(variance_type="learned_range", clip_sample=False)
    x0, noise, eps, raw = torch.randn(4, 1, 2, 3, 3, generator=rng(0, "variance"))
    x = scheduler.add_noise(x0, noise, torch.tensor([time]))
    silent = copy.deepcopy(scheduler)  # its steps are their means
    silent._get_variance = lambda *_, **__: torch.tensor(-math.inf)
    mean_q, mean_p = (
        silent.step(torch.cat([e, raw], 1), time, x).prev_sample for e in (noise, eps)
    )
    var_q = scheduler._get_variance(time, variance_type="fixed_small")
    log_var_p = scheduler._get_variance(time, raw)
    q = torch.distributions.Normal(mean_q, var_q.sqrt())
    p = torch.distributions.Normal(mean_p, (log_var_p / 2).exp())
    kl = torch.distributions.kl_divergence(q, p).mean().item()

    twice = (values.expand(2, -1, -1, -1) for values in (raw, eps, noise))
    variance_loss = load_bench("train_teacher", "weights").variance_loss
    loss = variance_loss(*twice, torch.tensor([0, time]), scheduler)
    assert loss.item() == pytest.approx(kl / 2, rel=1e-3)  # time 0 counts as 0


@pytest.mark.slow
def test_a_teacher_of_the_bench_gets_a_detector_and_the_same_command_goes_on(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        images = rng.integers(256, size=(300, 28, 28, 1), dtype=np.uint8)
        labels = np.arange(300) % 10
        np.savez(tmp_path / f"fashion-mnist-{split}.npz", images=images, labels=labels)
    teachers, out = load_bench("teachers"), tmp_path / "out"
    assert len(teachers.TEACHERS) == 7

    def train(steps):
        minutes = steps / teachers.TEACHERS["classes"].speed
        words = f"teachers train --data-root {tmp_path} --out {out} --only classes"
        words += f" --minutes {minutes} --detector-epochs 1"
        monkeypatch.setattr(sys, "argv", words.split())
        teachers.main()
        state = safe_open(out / "classes" / "state.safetensors", "pt").metadata()
        return state["step"], (out / "detectors/fashion-mnist-16/reference.npz").stat().st_mtime_ns

    (first, made), (second, still) = train(1), train(2)
    assert (first, second) == ("1", "2") and made == still
    teacher = load_teacher(str(out / "classes/pipeline"))
    assert teacher.shape == (1, 16, 16) and teacher.label_count == 10
    assert teacher.unet.config.out_channels == 2
    detector = load_detector(str(out / "detectors/fashion-mnist-16/detector"))
    reference = load_statistics(out / "detectors/fashion-mnist-16/reference.npz")
    assert reference.stamp == detector.stamp and reference.features.shape == (300, 64)
    assert read_npz(out / "images/fashion-mnist-16-train.npz").shape == (300, 16, 16, 1)


# ---- tables --------------------------------------------------------------------------------------


def test_methods_on_tables_are_measured_on_the_same_held_out_rows(monkeypatch, capsys):
    """y = 2 x + noise of sd 1, x uniform on [-2, 2]: a normal of sd s has the CRPS .56 s."""
    tables = load_bench("tables")
    draw = np.random.default_rng(0)
    x = draw.uniform(-2, 2, (1000, 1))
    y = 2 * x[:, 0] + draw.standard_normal(1000)
    monkeypatch.setattr(tables, "DATA", {"line": lambda: (x, y)})
    methods = ("hsivi-2,match=0", "quantiles", "normal", "mean")
    rows = [tables.measure("line", 3, method) for method in methods]
    crps = dict(zip(methods, (row["crps"] for row in rows), strict=True))
    sd = 1 / y.std()
    for method in methods[:3]:
        assert crps[method] == pytest.approx(sd / math.sqrt(math.pi), rel=0.25), method
    assert crps["mean"] > 2 * crps["normal"]
    tables.show(rows)
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("| data | method | splits | crps |") and len(lines) == 4
    assert lines[2].startswith(f"| line | normal | 1 | {crps['normal']:.3g} |")
    tables.show_briefly(rows)
    told = capsys.readouterr().out.splitlines()[-1].split(" | ")
    assert told[:2] == ["| mean", "1"]
    assert float(told[2]) == pytest.approx(crps["mean"] / crps["normal"], rel=0.01)
    alone = rows[2] | {"split": 4, "crps": 9.0}  # of a split that the others were not measured on
    assert tables.in_common([*rows, alone]) == rows
    ratio = tables.over_normal([*rows, alone])
    assert ratio["line", "mean"] == pytest.approx(crps["mean"] / crps["normal"])
