"""The 25-Gaussian ground: its metrics, the solvers' recorded numbers, and a short training; and the
way from images to a teacher.
"""

import copy
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command import ROOT, TINY, load_bench, save_detector, train
from diffusers import DDPMScheduler
from safetensors import safe_open
from safetensors.torch import load_file

from hsivi_cli.config import TrainConfig
from hsivi_cli.errors import HsiviError
from hsivi_cli.files.images import read_npz, save_npz
from hsivi_cli.method import schedule
from hsivi_cli.method.steps import rng
from hsivi_cli.metrics.detectors import load_detector
from hsivi_cli.metrics.statistics import (
    Statistics,
    load_statistics,
    moments_of,
    save_statistics,
)
from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.spacings import solver
from hsivi_cli.models.starts import BEARABLE, FINALISTS
from hsivi_cli.models.student import load_student

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
    small = bench.Bench(width=48, depth=2, mlp_steps=150)
    config = replace(TrainConfig(nfe="2"), **bench.recipe("2") | {"steps": 30, "batch_size": 64})
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
    monkeypatch.setattr(
        sys, "argv", [*words.split(), str(path), "steps=1", "width=8", "path_steps=1"]
    )
    figures.main()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    keys = [(row["seed"], row["layers"], row["objective"], row["target"]) for row in rows]
    assert keys == list(product((0, 1), (1, 2), ["lb"], ["banana", "funnel"]))
    assert all(0 < row["floor_js"] < row["js"] < math.log(2) for row in rows)


def test_moments_and_weights_of_figures_are_zero_at_the_truth_and_what_they_were_changed_by():
    figures = load_bench("figures2d")
    truth = figures.TARGETS["uneven-gaussians"]().sample(20_000, rng(0, "truth"))
    assert figures.moments("uneven-gaussians", truth, truth) == {"mean": 0, "sd": 0}
    assert figures.weight_error("uneven-gaussians", truth, truth) == {"weight": 0}
    moved = figures.moments("uneven-gaussians", 1.1 * truth + truth.std(0), truth)
    assert moved["sd"] == pytest.approx(0.1, abs=1e-3) and moved["mean"] > 0.9
    right = truth[:, 0] > 0
    turned = torch.cat([truth[~right], -truth[right]])  # the right mode's samples go left
    lost = figures.weight_error("uneven-gaussians", turned, truth)["weight"]
    assert lost == pytest.approx(right.float().mean().item())
    funnel = figures.TARGETS["funnel"]().sample(20_000, rng(0, "truth"))
    outlier = torch.cat([funnel, torch.tensor([[0.0, 1e4]])])  # beyond the inner 99 %
    assert figures.moments("funnel", outlier, funnel)["sd"] < 1e-3
    for name, count, least in (
        ("circles", 2, 9000),
        ("checkerboard", 8, 1000),
        ("25-uneven", 25, 150),
    ):
        modes = figures.mode_of(name, figures.TARGETS[name]().sample(20_000, rng(0, "truth")))
        assert (torch.bincount(modes) > least).sum() == count
    assert figures.mode_of("banana", truth) is figures.mode_of("x-shape", truth) is None


def test_a_table_tells_the_worst_seed_and_which_numbers_miss_their_aims():
    rows = [
        {"target": "banana", "objective": "lb", "layers": 4, "seed": seed, "settings": []}
        | {"mean": mean, "sd": 0.02, "js": 0.004, "w1": 0.1, "seconds": 20}
        for seed, mean in ((0, 0.01), (1, 0.06))
    ]
    shown = load_bench("figures2d").table(rows).splitlines()
    assert shown[0] == "| figure | lb, K = 4 |"
    assert shown[2] == "| banana | **.060** / .020; .004 / .10; 20 s |"


def test_another_checkout_finds_its_own_package_and_the_others_where_this_one_does(
    tmp_path, monkeypatch
):
    for folder, name in (("other", "hsivi_cli"), ("target", "only_there")):
        (tmp_path / folder / name).mkdir(parents=True)
        (tmp_path / folder / name / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'target'}{os.pathsep}{ROOT}")
    code = "import hsivi_cli, only_there; print(hsivi_cli.__file__)"
    env = load_bench("speed").surroundings(str(tmp_path / "other"))
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd="/", capture_output=True, text=True
    )
    assert done.stdout.strip() == str(tmp_path / "other/hsivi_cli/__init__.py"), done.stderr


@pytest.mark.slow
def test_the_cost_of_steps_is_told_of_every_batch_and_checkout(save_teacher, tmp_path, monkeypatch):
    speed, kept = load_bench("speed"), tmp_path / "speed.json"
    words = f"speed --teacher {save_teacher(**TINY)} --device cpu --batch-size 4,2 --nfe 2"
    words += f" --fake-updates 1 --minutes 0 --count 8 --against {ROOT} --json {kept}"
    monkeypatch.setattr(sys, "argv", words.split())
    speed.main()
    found = json.loads(kept.read_text())
    assert found["device"] == "cpu" and found["torch"] == torch.__version__
    measured = ("ours_ms", "against_ms", "paper_ms", "eager_floor_ms", "limit_ms")
    assert all(found["step"][key] > 0 for key in measured)
    assert found["waits_per_step"] == 0 and found["peak_memory"] > 2**20
    (further,) = found["further"]
    assert further["case"] == "batch 2" and further["ours_ms"] > 0 < further["against_ms"]
    assert 0 < found["sampling"]["share_with_pngs"] < 1
    # no detector that comes with hsivi takes 8 x 8 images: the embedded student's are scored
    assert found["scoring"]["images_per_second"] > 0 and found["scoring"]["share_in_networks"] > 0


def test_a_profile_tells_the_time_between_kernels(capsys):
    found, report = {}, SimpleNamespace()
    report.row = lambda words, value, **numbers: (print(words, value), found.update(numbers))
    spans = [(10.0, 12.0, "nchw"), (11.0, 21.0, "conv"), (25.0, 35.0, "conv"), (36.5, 37.0, "add")]
    load_bench("profiled").kernels(report, "captured", spans, begun=4.0, seconds=4e-5)
    kernels = found["kernels__captured"]
    parts = {"convolutions": 0.02, "casts and copies": 0.002, "other": 0.0005}
    assert kernels.pop("parts_ms") == pytest.approx(parts)
    counts = {"count": 4, "busy_ms": 0.0225, "span_ms": 0.027, "step_ms": 0.04}
    assert kernels == pytest.approx(counts | {"under_3_us": 2, "idle_ms": 0.0055})
    told = capsys.readouterr().out
    for least, most, words in ((1, 2, "1 of 0.0 ms"), (4, 8, "1 of 0.0 ms"), (8, 16, "0 of 0.0")):
        (line,) = (x for x in told.splitlines() if f"gaps of {least} to {most} us" in x)
        assert line.partition("us")[2].strip().startswith(words)


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")  # of older torches
def test_a_kernel_made_of_a_lambda_is_one_and_a_span_of_an_optimizer_is_none():
    is_annotation = load_bench("profiled").is_annotation
    copy = "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda("
    assert not is_annotation(copy + "at::TensorIteratorBase&)::{lambda()#3}::operator()() const>")
    assert not is_annotation("Memset (Device)")
    with torch.profiler.profile() as found:
        weight = torch.nn.Parameter(torch.ones(1))
        weight.grad = torch.ones(1)
        torch.optim.Adam([weight]).step()
    spans = [event.name for event in found.events() if "#" in event.name]
    assert spans and all(map(is_annotation, spans))


def test_memory_is_told_of_every_part_of_a_batch(save_teacher, tmp_path, monkeypatch, capsys):
    speed, kept = load_bench("speed"), tmp_path / "speed.json"
    words = f"speed --teacher {save_teacher(**TINY)} --device cpu --batch-size 4 --nfe 2"
    words += f" --fake-updates 1 --memory 1,4 --json {kept}"
    monkeypatch.setattr(sys, "argv", words.split())
    speed.main()
    cases = [row["case"] for row in json.loads(kept.read_text())["memory"]]
    again = ", activations made again"
    assert cases == [
        "in parts of 1",
        f"in parts of 1{again}",
        "in parts of 4",
        f"in parts of 4{again}",
    ]
    assert capsys.readouterr().out.count("a sample") == 4


def test_the_computed_memory_of_a_sample_is_what_a_call_keeps(tiny_unet):
    speed, kept = load_bench("speed"), {}
    unet, config = tiny_unet(), TrainConfig(nfe="2", batch_size=4)

    def keep(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = unet(torch.randn(1, 1, 8, 8), torch.zeros(1))
    weights, sample, _ = speed.computed_memory(unet, config, False)
    # attention's kernel keeps other sums where there are numbers
    assert out is not None and sample == pytest.approx(sum(kept.values()), rel=0.03)
    assert weights == 40 * sum(p.numel() for p in unet.parameters())
    assert speed.computed_memory(unet, config, True)[1] < 0.8 * sample


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


def teacher_words(tmp_path, *more):
    """Options of a short training of a small teacher."""
    save_npz(torch.randint(256, (20, 8, 8, 3), dtype=torch.uint8), tmp_path / "images.npz")
    words = ("--images", tmp_path / "images.npz", "--channels", "8,8", "--attention", 1, "--flip",
             "--batch-size", 4, "--device", "cpu", *more)  # fmt: skip
    return [str(word) for word in words]


def broken_off(script, words, out, when, monkeypatch):
    """A training that saves at every step and ends at once after the one that `when(step, plan)`
    is true of.
    """
    save = script.save

    def saved(out, step, plan, *rest):
        save(out, step, plan, *rest)
        if when(step, plan):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(script, "SAVE_SECONDS", -1)
        patched.setattr(script, "save", saved)
        with pytest.raises(KeyboardInterrupt):
            script.main([*words, "--out", str(out)])


def told_of(folder):
    found = safe_open(folder / "state.safetensors", "pt").metadata()
    return {key: json.loads(value) for key, value in found.items()}


def test_a_teacher_trained_in_two_parts_is_the_one_trained_at_once(tmp_path, monkeypatch):
    script, words = load_bench("train_teacher", "weights"), teacher_words(tmp_path, "--steps", 12)
    script.main([*words, "--out", str(tmp_path / "once")])
    broken_off(script, words, tmp_path / "parts", lambda step, plan: step == 7, monkeypatch)
    assert told_of(tmp_path / "parts")["step"] == 7  # in the second epoch
    script.main([*words, "--out", str(tmp_path / "parts")])
    once, parts = (load_file(tmp_path / d / "state.safetensors") for d in ("once", "parts"))
    assert all(once[name].equal(parts[name]) for name in once)
    assert load_teacher(str(tmp_path / "parts" / "pipeline")).shape == (3, 8, 8)


def test_a_teacher_given_minutes_plans_its_steps_by_their_speed_and_keeps_to_them(
    tmp_path, monkeypatch
):
    script, words = load_bench("train_teacher", "weights"), teacher_words(tmp_path)
    words += ["--minutes", "0.05"]
    draw, clock = script.draw_batch, SimpleNamespace(now=0.0)

    def drawn(*arguments):
        clock.now += 0.05  # of a machine that makes twenty steps a second
        return draw(*arguments)

    monkeypatch.setattr(script, "draw_batch", drawn)
    monkeypatch.setattr(script, "time", SimpleNamespace(time=lambda: clock.now))
    script.main([*words, "--out", str(tmp_path / "once")])
    # its speed is known at the second look, when one second of the three is over
    steps = 20 + int(20 * (1 - script.RESERVE) * 2)
    assert told_of(tmp_path / "once") == {"step": steps, "plan": [20, steps]}
    assert 2.8 < clock.now < 3
    plan = script.Plan(20, steps)
    assert plan.rate(20) == script.rise(20) and plan.rate(steps) == pytest.approx(0)

    broken_off(script, words, tmp_path / "parts", lambda step, plan: step == 30, monkeypatch)
    assert told_of(tmp_path / "parts") == {"step": 30, "plan": [20, steps]}
    script.main([*words, "--out", str(tmp_path / "parts")])
    once, parts = (load_file(tmp_path / d / "state.safetensors") for d in ("once", "parts"))
    assert all(once[name].equal(parts[name]) for name in once)


def test_every_time_has_its_share_in_a_batch_and_none_lies_beyond_the_last():
    script = load_bench("train_teacher", "weights")
    uniform = torch.rand(500, generator=rng(0, "times"))
    times = script.stratified_times(uniform, 1000)
    assert times.div(2, rounding_mode="floor").tolist() == list(range(500))
    uniform[-1] = 1 - 2**-24  # the largest below 1: in float32 499 and this are 500
    assert script.stratified_times(uniform, 1000).max() == 999


def test_an_epoch_of_a_teachers_training_shows_every_image_once_and_some_mirrored():
    script = load_bench("train_teacher", "weights")
    images = torch.arange(12, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 1, 2)
    images[..., 1] += 100
    labels = torch.arange(12)
    shown = [script.draw_batch(images, labels, step, 4, True, 1000) for step in range(3, 6)]
    x0, own = (torch.cat([batch[i] for batch in shown]) for i in (0, 3))
    assert own.sort().values.equal(labels)
    left, right = x0.add(1).mul(127.5).round().long().squeeze().unbind(1)
    mirrored = left > right
    assert torch.where(mirrored, right, left).equal(own) and 0 < mirrored.sum() < 12


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


def lay_out(out, folder, images):
    """A teacher's folder as v-cosine, with a detector of its images, as bench/teachers.py does."""
    ground = out / "detectors" / images
    ground.mkdir(parents=True)
    save_detector(ground / "detector")
    detector = load_detector(str(ground / "detector"))
    images = torch.randint(256, (30, 8, 8, 1), dtype=torch.uint8)
    moments, features = moments_of([images], detector, keep_features=True)
    save_statistics(ground / "reference.npz", Statistics(moments, detector.stamp, features))
    shutil.copytree(folder, out / "v-cosine" / "pipeline")


def test_the_default_is_trained_and_scored_on_a_teacher_once(save_teacher, tmp_path, monkeypatch):
    teachers, out = load_bench("teachers"), tmp_path / "out"
    monkeypatch.setattr(load_bench("across"), "FAMILIES", ("ddim",))
    monkeypatch.setattr(load_bench("across"), "FEW", 12)
    lay_out(out, save_teacher(**TINY), teachers.TEACHERS["v-cosine"].images)
    words = f"--out {out} --only v-cosine --nfe 2 --count 24 --device cpu"
    command = {
        "solvers": words,
        "students": f"{words} -- --steps 2 --regress-steps 0 --batch-size 4 --eval-count 9",
        "table": words,
    }
    for _ in range(2):  # the second time nothing is left to measure
        for verb, options in command.items():
            monkeypatch.setattr(sys, "argv", ["teachers.py", verb, *options.split()])
            teachers.main()
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["teacher", "solver", "student", "last"]
    assert all(math.isfinite(row["data"]) and 0 <= row["own_recall"] <= 1 for row in rows)
    assert rows[1]["name"].startswith("ddim-") and rows[3]["step"] == 2
    own = load_student(out / "students" / "v-cosine-2-0").info["best"]
    assert own["reference"] == "teacher" and rows[2]["step"] == own["step"]


def test_the_best_of_named_solvers_is_one_of_them(save_teacher, tmp_path, monkeypatch):
    teachers, out = load_bench("teachers"), tmp_path / "out"
    monkeypatch.setattr(load_bench("across"), "FEW", 12)
    lay_out(out, save_teacher(**TINY), teachers.TEACHERS["v-cosine"].images)
    words = f"teachers.py solvers --out {out} --only v-cosine --nfe 2 --count 24 --device cpu"
    monkeypatch.setattr(sys, "argv", [*words.split(), "--solvers", "ipndm-auto"])
    teachers.main()
    row = json.loads((out / "rows.jsonl").read_text().splitlines()[-1])
    assert row["kind"] == "solver" and row["name"].removesuffix(" clipped") == "ipndm-auto"
    monkeypatch.setattr(
        sys, "argv", [*words.replace("--nfe 2", "--nfe 3").split(), "--solvers", "ipmd-auto"]
    )
    with pytest.raises(HsiviError, match="ipmd"):
        teachers.main()


def test_what_is_seen_of_starts_is_what_their_choice_goes_by(save_teacher, tmp_path, monkeypatch):
    teachers, out = load_bench("teachers"), tmp_path / "out"
    lay_out(out, save_teacher(**TINY), teachers.TEACHERS["v-cosine"].images)
    words = f"starts --out {out} --only v-cosine --nfe 4 --count 24 --device cpu"
    monkeypatch.setattr(sys, "argv", ["teachers.py", *words.split()])
    teachers.main()
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == FINALISTS and all(row["alpha_bar"] < 1 for row in rows)
    train(out / "v-cosine" / "pipeline", tmp_path / "run", "--nfe", 4, "--start", "auto",
          "--noise-share", 0.2, "--steps", 0)  # fmt: skip
    chosen = load_student(tmp_path / "run").info["starts"]["4"]
    bearing = [row for row in rows if row["noisy"] <= BEARABLE * row["set"]]
    assert chosen == min(bearing, key=lambda row: row["set"])["name"]


def test_judges_of_starts_stand_beside_the_truth_once(save_teacher, tmp_path, monkeypatch, capsys):
    judges, out = load_bench("judges"), tmp_path / "out"
    monkeypatch.setattr(judges, "START_IMAGES", 6)
    monkeypatch.setattr(judges, "NAMES", ("unipc-auto", "ddim"))
    monkeypatch.setattr(judges, "finalists", lambda best, chains: best[:2])
    lay_out(out, save_teacher(**TINY), judges.TEACHERS["v-cosine"].images)
    words = f"--out {out} --cache {tmp_path / 'kept'} --only v-cosine --nfe 2 --count 12"
    monkeypatch.setattr(sys, "argv", ["judges.py", *words.split(), "--device", "cpu"])
    judges.main()
    told = capsys.readouterr().out
    monkeypatch.setattr(judges, "maps_of", None)  # the second time nothing is left to measure
    judges.main()
    assert told.endswith(capsys.readouterr().out)
    text = next(tmp_path.rglob("rows.jsonl")).read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert {"unipc-auto", "ddim"} <= {row["start"] for row in rows}
    assert sum(row["finalist"] for row in rows) == 2
    for row in rows:
        assert all(len(s) == 2 and all(map(math.isfinite, s)) for s in row["judges"].values())
    every = {name: rows[0]["judges"][name] for name in ("up blocks, means", "up blocks, sds")}
    both = [sum(pair) for pair in zip(*every.values(), strict=True)]
    assert rows[0]["judges"]["up blocks, means and sds"] == pytest.approx(both)
    assert f"| {rows[0]['start']} | {rows[0]['data']:.2f} " in told


def test_a_judge_is_right_where_it_takes_the_best():
    verdict = load_bench("judges").verdict
    rows = [{"data": d, "finalist": f} for d, f in ((3.0, True), (2.0, True), (1.0, False))]
    assert verdict(rows, [[3, 2, 1]]) == (1, 0, 0)
    assert verdict(rows, [[1, 2, 3]]) == (-1, 1, 2)
    assert verdict(rows, [[3, 2, 1], [1, 2, 3]]) == (0, 0.5, 1)


# ---- the adversarial term ------------------------------------------------------------------------


def test_the_adversarial_term_is_measured_beside_trainings_of_as_many_steps_and_as_long(
    tmp_path, capsys
):
    script, images = load_bench("adversarial"), tmp_path / "images.npz"
    rng = np.random.default_rng(0)
    np.savez(images, images=rng.integers(256, size=(8, 28, 28, 1), dtype=np.uint8))
    words = f"--data {images} --out {tmp_path / 'out'} --calls 1 --seeds 0 --shares 0.5 --count 6"
    words += " --device cpu --steps 2 batch_size=2 fake_warmup=1 adversarial_after=2"
    words += f" --students {ROOT / 'weights' / 'students'}"
    script.main(words.split())
    rows = script.rows(SimpleNamespace(out=tmp_path / "out"))
    kinds = [(row["share"], row["step"]) for row in rows]
    assert kinds[:5] == [(0.0, 0), *product([0.5, 0.0], [1, 2])]
    assert rows[-1]["seconds"] >= rows[2]["seconds"] > 0 and len(rows) in (5, 6)
    assert all(row["distance"] > 0 and 0 <= row["recall"] <= 1 for row in rows)
    told = capsys.readouterr().out.splitlines()
    assert list(map(json.loads, told)) == rows
    script.main(words.split())
    assert capsys.readouterr().out == ""
    (tmp_path / "out" / "rows.jsonl").write_text("\n".join(told[:2]) + "\n")  # cut off
    script.main(words.split())
    assert capsys.readouterr().out.count("\n") >= 3


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


def test_methods_on_tables_are_set_against_one_split_by_split(capsys):
    """Differences .1, .3 and .2: mean .2, sd .1."""
    tables = load_bench("tables")
    crps = {"a": (1.0, 2.0, 3.0), "b": (1.1, 2.3, 3.2), "c": (0.5,)}
    rows = [
        {"data": "line", "split": split, "method": method, "crps": value}
        for method, values in crps.items()
        for split, value in enumerate(values)
    ]
    found = tables.differences(rows, "a")
    assert found["line", "b"] == pytest.approx((0.2, 0.1 / math.sqrt(3), 3))
    assert found["line", "c"] == pytest.approx((-0.5, math.nan, 1), nan_ok=True)
    tables.show_differences(rows, "a")
    assert capsys.readouterr().out.splitlines()[-1] == "| line | 3 | 0.2000 (0.0577) | -0.5000 |"
