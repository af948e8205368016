"""A run of `hsivi infer`: what lies in its folder, how it stops and goes on, what it refuses."""

import json
import math
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command import finite, hsivi, refusal, rows, tree, warnings_of

from hsivi_cli.density import against, halves, nuts
from hsivi_cli.density.rounds import play_round
from hsivi_cli.errors import HsiviError
from hsivi_cli.files.checkpoint import checkpoints
from hsivi_cli.files.folder import holding
from hsivi_cli.files.whole import read_tensors, write_tensors
from hsivi_cli.verbs import infer as infer_module
from hsivi_cli.verbs.infer import load

pytestmark = pytest.mark.usefixtures("coarse_pictures")
FLAGS = (
    *("--layers", 2, "--width", 16, "--depth", 1, "--batch-size", 16, "--steps", 4),
    *("--fake-warmup", 2, "--fake-updates", 1, "--mixing", 8, "--count", 500, "--path-steps", 2),
)


def infer(target, out, *options, **more):
    """`hsivi infer TARGET --out OUT`, small unless the options say otherwise."""
    return hsivi("infer", target, "--out", out, *FLAGS, *options, **more)


def refused(target, out, *options):
    return refusal("infer", target, "--out", out, *FLAGS, *options)


TILTED = ("densities:tilted", "--dim", 3)


@pytest.fixture(scope="module")
def finished_runs(tmp_path_factory):
    """Folders of finished runs, by what was typed."""
    return tmp_path_factory.mktemp("finished"), {}


@pytest.fixture
def finished(finished_runs, tmp_path):
    """A function (target, *options) -> a copy of a finished run of these, tmp_path / "y". Each is
    made once.
    """

    def copied(*typed):
        folder, made = finished_runs
        if typed not in made:
            made[typed] = folder / str(len(made))
            infer(typed[0], made[typed], *typed[1:])
        return Path(shutil.copytree(made[typed], tmp_path / "y"))

    return copied


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
    assert summary["quantiles"].keys() == {"0.05", "0.25", "0.5", "0.75", "0.95"}
    for level, row in summary["quantiles"].items():
        np.testing.assert_allclose(row, np.quantile(x, float(level), 0), rtol=1e-5, atol=1e-6)
    assert finite(summary["divergence"])
    metrics = rows(tmp_path / "y" / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4] and all(map(finite, metrics))
    np.testing.assert_array_equal(load(tmp_path / "y").sample(500).numpy(), x)


def test_more_coordinates_have_marginals_and_pairs(tmp_path):
    infer("densities:tilted", tmp_path / "y", "--dim", 3, "--objective", "lb")
    assert {"pairs.png", "marginals.png"} <= {p.name for p in (tmp_path / "y").iterdir()}


@pytest.mark.parametrize("objective", ["reverse-kl", "lb"])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(tmp_path, monkeypatch, objective):
    options = ("--objective", objective, "--bridge", "diffusion")
    infer("circles", tmp_path / "whole", *options)
    played = []

    def play_and_interrupt(networks, config, round_):
        played.append(round_)
        if len(played) == 3:
            os.kill(os.getpid(), signal.SIGTERM)  # a shell may have told us to ignore SIGINT
        return play_round(networks, config, round_)

    with monkeypatch.context() as patch:
        patch.setattr(infer_module, "play_round", play_and_interrupt)
        said = infer("circles", tmp_path / "parts", *options, exit_code=143)
    assert "type the same line again" in said.stderr
    infer("circles", tmp_path / "parts", *options)
    for name in ("model.safetensors", "metrics.jsonl", "samples.npz", "summary.json"):
        same = [(tmp_path / part / name).read_bytes() for part in ("whole", "parts")]
        assert same[0] == same[1], name


def test_a_finished_run_goes_on_with_more_steps_and_not_with_fewer(finished, tmp_path):
    finished("banana")
    first = json.loads((tmp_path / "y" / "infer.json").read_text())
    infer("banana", tmp_path / "y", "--steps", 6)
    assert [row["step"] for row in rows(tmp_path / "y" / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    info = json.loads((tmp_path / "y" / "infer.json").read_text())
    assert info["step"] == 6
    assert info["cpu_seconds"] > first["cpu_seconds"] > 0
    assert "begun with --steps 6, not 4" in refused("banana", tmp_path / "y")


def test_a_run_ends_where_two_halves_agree_and_an_interrupted_one_there_too(tmp_path, monkeypatch):
    monkeypatch.setattr(halves, "FIRST_MARK", 2)
    options = ("--steps", "auto", "--student-rate", 1e-9, "--objective", "lb")  # nothing moves
    infer("two-gaussians", tmp_path / "whole", *options)
    assert [row["step"] for row in rows(tmp_path / "whole" / "metrics.jsonl")] == [1, 2, 3, 4]
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["step"] == 4
    assert all(gap <= halves.CLOSE[name] for name, gap in summary["halves"].items())
    played = []

    def play_and_interrupt(networks, config, round_):
        played.append(round_)
        if len(played) in (2, 3):
            os.kill(os.getpid(), signal.SIGTERM)
        return play_round(networks, config, round_)

    with monkeypatch.context() as patch:
        patch.setattr(infer_module, "play_round", play_and_interrupt)
        for step in (2, 3):
            said = infer("two-gaussians", tmp_path / "parts", *options, exit_code=143)
            assert f"at step {step} of 16000 at most" in said.stderr
    infer("two-gaussians", tmp_path / "parts", *options)
    infer("two-gaussians", tmp_path / "parts", *options)  # it has ended
    for name in ("model.safetensors", "metrics.jsonl", "samples.npz", "summary.json"):
        same = [(tmp_path / part / name).read_bytes() for part in ("whole", "parts")]
        assert same[0] == same[1], name


@pytest.mark.slow  # 2,000 steps
def test_a_run_whose_halves_never_agree_says_so_at_its_most_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(halves, "FIRST_MARK", 2)
    monkeypatch.setattr(halves, "COUNT", 100)
    monkeypatch.setattr(halves, "CLOSE", {"mean": -1.0, "sd": 0.03, "bound": 0.03})
    said = infer("two-gaussians", tmp_path / "y", "--steps", "auto",
                 "--most-steps", 2000, "--width", 4, "--objective", "ksivi")  # fmt: skip
    (warning,) = (line for line in warnings_of(said) if "steps means differ" in line)
    assert "after 1024 and 2000 steps" in warning and "give a higher --most-steps" in warning


def test_steps_auto_and_a_number_of_steps_are_other_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(halves, "FIRST_MARK", 2)
    infer("two-gaussians", tmp_path / "y", "--steps", "auto", "--student-rate", 1e-9)
    found = tree(tmp_path / "y")
    said = refused("two-gaussians", tmp_path / "y", "--student-rate", 1e-9, "--steps", 16_000)
    assert "was begun with --steps auto" in said
    shutil.rmtree(tmp_path / "y" / "checkpoint")
    said = refused("two-gaussians", tmp_path / "y", "--steps", "auto", "--student-rate", 1e-9)
    assert "holds a finished run of 4 steps without its checkpoint" in said
    assert tree(tmp_path / "y").keys() <= found.keys()


def test_a_framed_run_goes_on_in_its_frame_without_searching_it_anew(finished, monkeypatch):
    run = finished(*TILTED)
    frame = load(run).factor
    assert frame.shape == (3, 3) and not frame.equal(torch.eye(3))
    monkeypatch.setattr("hsivi_cli.density.networks.fit_gaussian", None)
    infer("densities:tilted", run, "--dim", 3, "--steps", 5)
    assert load(run).factor.equal(frame)


@pytest.fixture
def quick_others(monkeypatch):
    """The flow and NUTS in fewer seconds than they are worth."""
    monkeypatch.setattr(against, "LEAST", 0.2)
    monkeypatch.setattr(nuts, "BURN_IN", 100)


def test_compare_writes_rows_and_histograms_and_tells_of_nuts_that_has_not_mixed(
    quick_others, tmp_path, monkeypatch
):
    monkeypatch.setattr(against, "EXACT_COUNT", 5000)
    infer("two-gaussians", tmp_path / "y")
    said = infer("two-gaussians", tmp_path / "y", "--compare", "--chains", 2, "--draws", 50)
    assert said.stdout.startswith("measured from exact draws") and "mean-field" in said.stdout
    found = json.loads((tmp_path / "y" / "compare.json").read_text())
    assert found["about"]["truth_count"] == 5000
    assert [row["name"] for row in found["rows"]] == [
        "hsivi",
        "full-rank",
        "mean-field",
        "flow",
        "nuts",
    ]
    trained = json.loads((tmp_path / "y" / "infer.json").read_text())["cpu_seconds"]
    assert found["rows"][0]["cpu_seconds"] > trained - 0.01 > 0  # the file has hundredths
    assert (tmp_path / "y" / "compare.png").is_file()
    assert found["rows"][4]["rhat"] > 1.01  # of 50 draws
    assert "warning: NUTS has not drawn this target well (R-hat 1." in said.stderr


def test_a_package_that_breaks_when_imported_does_not_break_a_finished_run(tmp_path, monkeypatch):
    (tmp_path / "arviz.py").write_text("import sys\nsys.no_such_thing")
    monkeypatch.delitem(sys.modules, "arviz", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    said = infer("densities:normal", tmp_path / "y", "--dim", 2).stderr
    (warning,) = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert "posterior.nc" in warning and "arviz cannot be imported (AttributeError: " in warning
    names = {path.name for path in (tmp_path / "y").iterdir()}
    assert {"samples.npz", "summary.json"} <= names and "posterior.nc" not in names
    # what needs it is refused before anything is written
    told = refused("densities:normal", tmp_path / "z", "--dim", 2, "--compare")
    assert "arviz cannot be imported" in told and not (tmp_path / "z").exists()


def test_a_run_ends_with_a_line_on_its_quality_and_a_warning_where_it_is_poor(tmp_path):
    said = infer("densities:normal", tmp_path / "y", "--dim", 2).stderr  # it begins there
    found = json.loads((tmp_path / "y" / "summary.json").read_text())["divergence"]
    assert f"lower bound of log Z {found['lower_bound']:.3g} ±" in said
    assert f"ESS {found['importance_ess']:.0f} of 2000" in said and "warning" not in said
    # four steps from N(0, 1) do not reach the funnel's sd of 3
    poor = infer("funnel", tmp_path / "z").stderr
    # particles from further out tell of it too
    *_, warning = [line for line in poor.splitlines() if line.startswith("warning: ")]
    assert "the samples miss parts of the target" in warning and "--steps" in warning
    assert (
        json.loads((tmp_path / "z" / "infer.json").read_text())["config"]["bridge"] == "geometric"
    )
    assert "improper" not in poor  # the training is at fault, not the target


def test_the_same_command_on_a_finished_run_changes_nothing(finished):
    run = finished("banana")
    before = (run / "model.safetensors").read_bytes()
    infer("banana", run)
    assert (run / "model.safetensors").read_bytes() == before


def test_a_finished_run_without_its_checkpoint_is_left_alone(finished):
    run = finished("banana")
    shutil.rmtree(run / "checkpoint")
    before = tree(run)
    told = refused("banana", run, "--steps", 9)
    assert "without its checkpoint" in told and tree(run) == before


@pytest.mark.parametrize(
    "tensors",
    [
        {"weight": torch.zeros(3)},
        {"family.centre": torch.zeros(5), "family.factor": torch.zeros(5, 5)},
    ],
    ids=["another network", "another frame"],
)
def test_a_checkpoint_of_something_else_is_one_line(tensors, finished):
    run = finished(*TILTED)
    (newest,) = checkpoints(run / "checkpoint")
    (newest / "SHA256SUMS").unlink()  # or no other file would be believed
    write_tensors(newest / "tensors.safetensors", tensors)
    before = tree(run)
    told = refused("densities:tilted", run, "--dim", 3, "--steps", 9)
    assert f"damaged: {newest} (" in told and "another --out" in told
    assert tree(run) == before


def test_a_folder_of_another_run_is_refused(tmp_path):
    infer("banana", tmp_path / "y", "--objective", "sm")
    assert "begun with --objective sm, not lb" in refused("banana", tmp_path / "y")
    assert "another target (banana" in refused("x-shape", tmp_path / "y")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    assert "no run of hsivi infer" in refused("banana", tmp_path / "other")


# ---- bad input -----------------------------------------------------------------------------------


def test_a_function_of_the_users_is_a_target(tmp_path):
    infer("densities:good", tmp_path / "y", "--dim", 3, "--objective", "lb")
    assert np.load(tmp_path / "y" / "samples.npz")["x"].shape == (500, 3)


def test_a_run_is_not_resumed_on_a_density_that_has_changed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "my_density.py"

    def write(value):
        file.write_text(f"def good(x): return {value}")
        sys.modules.pop("my_density", None)

    write("-x.square().sum(1)")
    infer("my_density:good", tmp_path / "y", "--dim", 3)
    before = tree(tmp_path / "y")
    write("5 - 2 * x.square().sum(1)")
    told = refused("my_density:good", tmp_path / "y", "--dim", 3)
    assert "it was another density" in told and tree(tmp_path / "y") == before
    write("5 - x.square().sum(1)")  # a constant is no change
    infer("my_density:good", tmp_path / "y", "--dim", 3)


def test_a_target_that_fails_later_is_one_line_too(tmp_path):
    told = refused("densities:touchy", tmp_path / "y", "--dim", 3)
    assert told.endswith("ValueError: too far") and "Gaussian" not in told
    options = ("--dim", 2, "--student-rate", 0.05, "--steps", 60, "--objective")
    assert "ValueError: too far" in refused("densities:touchy", tmp_path / "z", *options, "lb")


@pytest.mark.parametrize("objective", ["lb", "reverse-kl"])
def test_samples_beyond_the_targets_support_are_told_of(tmp_path, objective):
    options = ("--dim", 2, "--objective", objective, "--student-rate", 0.05, "--steps", 200)
    options = (*options, "--batch-size", 64, "--bridge", "geometric")
    told = infer("densities:fenced", tmp_path / "y", *options, exit_code=1).stderr
    assert "log density is -inf at x = (" in told.splitlines()[-1]
    assert not (tmp_path / "y" / "summary.json").exists()


def test_a_comparison_of_samples_that_are_no_more_goes(quick_others, tmp_path):
    infer("densities:good", tmp_path / "y", "--dim", 2, "--compare", "--chains", 2, "--draws", 20)
    about = json.loads((tmp_path / "y" / "compare.json").read_text())["about"]
    assert about["step"] == 4
    infer("densities:good", tmp_path / "y", "--dim", 2)
    assert (tmp_path / "y" / "compare.json").exists()
    infer("densities:good", tmp_path / "y", "--dim", 2, "--steps", 6)
    assert not list((tmp_path / "y").glob("compare.*"))
    assert json.loads((tmp_path / "y" / "summary.json").read_text())["step"] == 6


def test_a_run_killed_at_its_first_export_goes_on(tmp_path):
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / ".infer.json.77.tmp.json").write_text("{")
    infer("banana", tmp_path / "y")
    assert not list((tmp_path / "y").glob(".*"))


def test_a_density_that_is_random_is_resumed(tmp_path):
    for steps in (2, 4):
        infer("densities:noisy", tmp_path / "y", "--dim", 2, "--steps", steps)


def test_a_second_process_in_a_runs_folder_is_refused(finished, tmp_path):
    with holding(tmp_path / "y"):
        assert "another process runs in" in refused("banana", tmp_path / "y")
    finished("banana")
    (tmp_path / "y" / ".model.safetensors.77.tmp.safetensors").write_text("half")
    before = tree(tmp_path / "y")
    with holding(tmp_path / "y"):
        refused("banana", tmp_path / "y")
    assert tree(tmp_path / "y") == before
    infer("banana", tmp_path / "y")
    assert not list((tmp_path / "y").glob(".*"))


def test_what_cannot_be_used_is_refused_before_anything_is_written(tmp_path):
    out = tmp_path / "y"
    assert "gradient is nan" in refused("densities:steep", out, "--dim", 2)
    assert "needs --dim" in refused("densities:good", out)
    assert "goes with --frame none" in refused(
        "circles", out, "--bridge", "diffusion", "--frame", "gaussian"
    )
    assert "--lambdas 1,0.5 must be 3 numbers" in refused("banana", out, "--lambdas", "1,0.5")
    assert "--device" in refused("banana", out, "--device", "nowhere")
    assert not out.exists()


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--layers", 0), ("--batch-size", 1), ("--start-scale", 0), ("--ema", 1), ("--sines", 99)],
)
def test_numbers_that_mean_nothing_are_refused(tmp_path, flag, value):
    assert refused("banana", tmp_path / "y", flag, value).startswith(f"error: {flag} {value}")


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path):
    said = infer(
        "banana", tmp_path / "y", "--objective", "lb", "--student-rate", 1e5, exit_code=1
    ).stderr.splitlines()[-1]
    assert said.startswith("error: the loss is not finite at step") and "lower" in said
    infer("banana", tmp_path / "y", "--objective", "lb")  # it kept nothing, so nothing binds


def test_a_round_that_is_not_finite_is_skipped_or_rolled_back_in_inference_too(
    tmp_path, monkeypatch
):
    rates = []

    def diverging(networks, config, round_):
        rates.append((round_, config.student_rate, networks.fake_optimizer.param_groups[0]["lr"]))
        at_fault = round_ == 4 and config.student_rate > 5e-4
        return play_round(networks, config, round_) | ({"norm": math.nan} if at_fault else {})

    monkeypatch.setattr(infer_module, "play_round", diverging)
    options = ("--objective", "reverse-kl", "--checkpoint-every", 1, "--count", 9)
    assert "norm not finite at step 3: skipped" in infer("banana", tmp_path / "y", *options).stderr
    assert rows(tmp_path / "y" / "metrics.jsonl")[2] == {"step": 3, "skipped": ["norm"]}
    rates.clear()
    told = infer("banana", tmp_path / "z", *options, "--on-nan", "rollback").stderr
    assert "back to step-000003, at rates times 0.5" in told
    assert rates[4:6] == [(4, 1e-3, 2e-3), (3, 5e-4, 1e-3)]


@pytest.mark.parametrize("objective", ["lb", "reverse-kl"])
def test_layers_that_draw_what_is_not_finite_are_neither_kept_nor_exported(tmp_path, objective):
    absurd = ("--rate-warmup", 0, "--decay", "none", "--ema", 0, "--student-rate", 9e5)
    options = ("--objective", objective, "--steps", 1, *absurd)
    line = infer("banana", tmp_path / "y", *options, exit_code=1).stderr.splitlines()[-1]
    assert "draw NaN or infinite values at step 1; there was no checkpoint yet" in line
    assert "samples.npz" not in {file.name for file in (tmp_path / "y").iterdir()}
    assert all(tensor.abs().max() < 9e5 for tensor in load(tmp_path / "y").state_dict().values())


def test_layers_that_are_not_finite_are_refused_by_their_weights_name(finished):
    run = finished("banana")
    file = run / "model.safetensors"
    tensors = read_tensors(file)
    tensors["centre"][1] = math.inf
    write_tensors(file, tensors)
    with pytest.raises(HsiviError, match=r"model\.safetensors: centre holds NaN or infinite"):
        load(run)


def spoil_layers(run, name, value):
    """Set one tensor of a run's averaged layers in its checkpoint."""
    (newest,) = checkpoints(run / "checkpoint")
    (newest / "SHA256SUMS").unlink()
    tensors = read_tensors(newest / "tensors.safetensors")
    tensors[f"ema.{name}"].fill_(value)
    write_tensors(newest / "tensors.safetensors", tensors)


def test_samples_that_are_not_finite_are_refused_before_anything_is_written(finished):
    run = finished("banana")
    before = tree(run)
    spoil_layers(run, "layers.0.log_scale", 88.7)  # its exponential is near the largest
    line = refused("banana", run)
    assert "of 500 samples hold NaN or infinite values: none was written" in line
    for name in ("samples.npz", "summary.json", "layers.png"):
        assert (run / name).read_bytes() == before[Path(name)]


def test_modes_further_apart_than_the_base_are_warned_of(tmp_path):
    warned = warnings_of(infer("densities:apart", tmp_path / "y", "--dim", 3))
    assert any("end where no sample lies: the target has mass further out" in w for w in warned)
    near = warnings_of(infer("densities:tilted", tmp_path / "z", "--dim", 3))
    assert not any("where no sample lies" in w for w in near)


@pytest.mark.parametrize("steps", [4, 60])  # by which the samples go far, or not yet
def test_an_improper_density_is_told_as_such_and_no_more_steps_are_advised(tmp_path, steps):
    options = ("--dim", 2, "--bridge", "geometric", "--steps", steps, "--student-rate", 0.05)
    (warned,) = warnings_of(infer("densities:ridge", tmp_path / "y", *options))
    assert "does not end within 1000 of 0: it is improper" in warned


def test_a_density_of_one_coordinate_is_sampled(tmp_path):
    infer("densities:normal", tmp_path / "y", "--dim", 1, "--path-steps", 50)
    x = np.load(tmp_path / "y" / "samples.npz")["x"]
    assert x.shape == (500, 1) and abs(x.mean()) < 0.3 and abs(x.std() - 1) < 0.2


def test_samples_that_have_gone_far_away_are_warned_of(finished):
    run, *more = finished(*TILTED), *TILTED[1:]
    assert "beyond" not in infer("densities:tilted", run, *more).stderr
    spoil_layers(run, "centre", 5e11)
    warned = warnings_of(infer("densities:tilted", run, *more))
    assert any("is 5e+11 from 0: beyond 1e+06 the target is not checked" in w for w in warned)


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, "{}", "\xff"])
def test_a_damaged_description_of_a_run_is_one_line(finished, content):
    run = finished("banana")
    (run / "infer.json").write_text(content, encoding="latin-1")
    assert "infer.json" in refused("banana", run)
    assert "infer.json" in refusal("info", run)


@pytest.mark.parametrize(
    "change",
    [
        {"target": 7}, {"dim": 2.5}, {"dim": 0}, {"step": -1}, {"seconds": 9**400},
        {"cpu_seconds": None}, {"fingerprint": "x"}, {"fingerprint": [1, "x"]}, {"format": 1},
        {"config": None}, {"config": {"steps": "x"}}, {"config": {"layers": []}},
        {"seconds": True}, {"fingerprint": [True]}, {"config": {"layers": True}},
        {"config": {"student_rate": True}},
    ],
    ids=str,
)  # fmt: skip
def test_a_part_of_a_description_that_no_run_writes_is_refused(finished, change):
    run = finished("banana")
    file = run / "infer.json"
    whole = json.loads(file.read_text())
    config = {"config": whole["config"] | change["config"]} if change.get("config") else {}
    file.write_text(json.dumps(whole | change | config))
    for line in (refused("banana", run), refusal("info", run)):
        assert f"infer.json describes no run of this version ({next(iter(change))} is" in line
