"""Runs of `hsivi train`: what they leave on disk, how they stop and go on, each option once."""

import ast
import contextlib
import errno
import fcntl
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import termios
import time
from dataclasses import replace

import diffusers
import pytest
import torch
from accelerate import Accelerator
from command import QUICK, TINY, finite, hsivi, refusal, rows, save_detector, train, tree
from conftest import edit_json
from safetensors.torch import load_file, save_file

from hsivi_cli.config import TrainConfig
from hsivi_cli.errors import HsiviError
from hsivi_cli.files import checkpoint, whole
from hsivi_cli.files.checkpoint import checkpoints, go_back, load_checkpoint
from hsivi_cli.files.folder import holding
from hsivi_cli.files.images import save_npz
from hsivi_cli.files.interrupt import Interrupt
from hsivi_cli.method import distill, regress
from hsivi_cli.metrics import evaluation
from hsivi_cli.metrics.detectors import load_detector
from hsivi_cli.metrics.evaluation import EVAL_SEED
from hsivi_cli.metrics.frechet import frechet_distance
from hsivi_cli.metrics.statistics import load_statistics, moments_of
from hsivi_cli.models.draw import Sampler, draw, solver_sampler, student_sampler
from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.networks import networks_of, training_tensors
from hsivi_cli.models.starts import make_chain
from hsivi_cli.models.student import HSIVIPipeline, load_student
from hsivi_cli.runs import training as training_module
from hsivi_cli.verbs import train as train_module


@pytest.fixture(scope="module")
def teacher(tiny_unet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    unet = tiny_unet(**TINY)
    diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler()).save_pretrained(folder)
    return folder


def student_files(out):
    """What a run ends with and must repeat: the network, the chain with its scale, the metrics."""
    names = ("unet/diffusion_pytorch_model.safetensors", "chain.safetensors", "metrics.jsonl")
    return {name: (out / name).read_bytes() for name in names}


def images_of(sampler, count=6):
    return torch.cat(list(draw(sampler, range(count), count, "cpu")))


def counted(sampler):
    """The sampler, and the batch size of every network call it will make."""
    calls, inner = [], sampler.network
    return replace(sampler, network=lambda x, *rest: calls.append(len(x)) or inner(x, *rest)), calls


def test_a_top_sd_is_drawn_from_and_not_learned_from(teacher, tmp_path):
    for sd in (1, 1.2):
        train(teacher, tmp_path / str(sd), "--top-sd", sd)
    one, wide = (student_files(tmp_path / name) for name in ("1", "1.2"))
    assert [name for name in one if one[name] != wide[name]] == ["chain.safetensors"]
    one, wide = (student_sampler(load_student(tmp_path / name)) for name in ("1", "1.2"))
    assert not torch.equal(images_of(one), images_of(wide))


@pytest.mark.parametrize(
    ("prediction", "meant"),
    [("epsilon", "reverse-kl"), ("v_prediction", "score-matching"), ("sample", "reverse-kl")],
)
def test_the_objective_goes_by_what_the_teacher_predicts(save_teacher, tmp_path, prediction, meant):
    teacher = save_teacher(scheduler=diffusers.DDPMScheduler(prediction_type=prediction), **TINY)
    for objective in ("auto", meant):  # the second goes on with the first
        train(teacher, tmp_path / "run", "--objective", objective, "--weight", "output")
    config = json.loads((tmp_path / "run" / "hsivi.json").read_text())["config"]
    assert config["objective"] == meant


def kept_checkpoints(out):
    return sorted(path.name for path in (out / "checkpoint").iterdir())


# ---- going on ------------------------------------------------------------------------------------

SEVERAL = ("--nfe", "1,2,3", "--noise-share", 0.5, "--fake-warmup", 1)
REGRESSED = ("--regress-steps", 4, "--nfe", "1,3", "--fake-warmup", 2)
MIXED = (
    *("--objective", "score-matching", "--noise-share", 0.5, "--log-scale", "pixel"),
    *("--order", "sequential", "--optimizer", "amsgrad", "--accumulate", 2),
)


@pytest.mark.parametrize("options", [(), MIXED, SEVERAL], ids=["default", "mixed", "several"])
def test_a_run_broken_off_after_every_round_ends_bit_for_bit_like_an_unbroken_one(
    teacher, tmp_path, options
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(teacher, whole, "--steps", 4, *options)
    for done in (0, 1, 2, 3, 4):  # a round of warm-up and four steps
        train(teacher, broken, "--steps", 4, *options, "--minutes", 1e-9)
        assert load_student(broken).info["step"] == done
    assert student_files(broken) == student_files(whole)


def test_a_run_that_regresses_first_may_be_broken_off_there_too(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(regress, "REGRESS_UPDATES", 3)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    told = train(teacher, whole, "--steps", 1, *REGRESSED).stderr
    assert "4 updates of regression" in told
    for done in range(5):  # two rounds of regression, two of warm-up, a step
        told = train(teacher, broken, "--steps", 1, *REGRESSED, "--minutes", 1e-9).stderr
        assert ("saved after 3 of 4 updates of regression" in told) == (done == 0)
    assert "4 updates of regression" in (broken / "README.md").read_text()
    assert load_student(broken).info["step"] == 1
    assert student_files(broken) == student_files(whole)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_saves_says_how_to_go_on_and_loses_nothing(
    teacher, tmp_path, monkeypatch, number, status
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(teacher, whole, "--steps", 4)
    play_round = distill.play_round

    def interrupted(networks, config, round_):
        if round_ == 2:
            os.kill(os.getpid(), number)
        return play_round(networks, config, round_)

    monkeypatch.setattr(train_module, "play_round", interrupted)
    monkeypatch.setattr(sys, "argv", ["hsivi", "train", "my teacher", "--out", "runs/x"])
    handler = signal.getsignal(number)
    if handler is signal.SIG_IGN:  # as a shell starts what runs in its background
        handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, handler)
    result = train(teacher, broken, "--steps", 4, exit_code=status)
    assert "step 2 of 4" in result.stderr
    assert "hsivi train 'my teacher' --out runs/x" in result.stderr.splitlines()[-1]
    assert signal.getsignal(number) == handler
    assert len(rows(broken / "metrics.jsonl")) == 2
    monkeypatch.undo()
    train(teacher, broken, "--steps", 4)
    assert student_files(broken) == student_files(whole)


def heeds_signals():
    """What a terminal's processes do, whatever the tests were started in."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.slow  # a process that loads torch, for what the signals above show in this one
def test_an_interrupted_process_exits_130_and_leaves_a_checkpoint(teacher, tmp_path):
    out, log = tmp_path / "run", tmp_path / "stderr"
    command = [sys.executable, "-m", "hsivi_cli", "train", teacher, "--out", out, *map(str, QUICK)]
    with open(log, "w") as stderr:
        process = subprocess.Popen(
            [*command, "--steps", "100000"], stderr=stderr, preexec_fn=heeds_signals
        )
        try:
            end = time.monotonic() + 100
            while not (out / "metrics.jsonl").exists() and time.monotonic() < end:
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=100) == 130, log.read_text()
        finally:
            process.kill()
    assert "type the same line again" in log.read_text()
    assert len(kept_checkpoints(out)) == 1 and load_student(out).info["step"] >= 1


def test_what_a_killed_run_wrote_after_its_checkpoint_is_dropped_and_done_again(teacher, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(teacher, whole, "--steps", 4)
    train(teacher, broken, "--steps", 4, "--minutes", 1e-9)
    train(teacher, broken, "--steps", 4, "--minutes", 1e-9)
    with open(broken / "metrics.jsonl", "a") as log:
        log.write('{"step": 2, "loss": 0.5}\n{"step": 3, "lo')  # as a power cut leaves it
    train(teacher, broken, "--steps", 4)
    assert student_files(broken) == student_files(whole)


def test_a_finished_run_typed_again_changes_no_student(teacher, tmp_path):
    train(teacher, tmp_path / "run")
    before = student_files(tmp_path / "run")
    train(teacher, tmp_path / "run")
    assert student_files(tmp_path / "run") == before


def test_more_steps_go_on_where_the_run_ended(teacher, tmp_path):
    whole, longer = tmp_path / "whole", tmp_path / "longer"
    train(teacher, whole, "--steps", 4, "--decay", "none")
    train(teacher, longer, "--steps", 2, "--decay", "none")
    train(teacher, longer, "--steps", 4, "--decay", "none")
    assert student_files(longer) == student_files(whole)


def test_a_rate_that_nobody_named_stays_that_of_the_steps_a_run_was_begun_with(teacher, tmp_path):
    out, options = tmp_path / "run", [*QUICK]
    for name in ("--student-rate", "--regress-steps", "--fake-warmup"):
        at = options.index(name)
        del options[at : at + 2]
    options += ("--regress-steps", 1)
    for steps, rate in ((52, 3.85e-5), (54, 3.85e-5)):
        hsivi("train", teacher, "--out", out, *options, "--steps", steps)
        config = load_student(out).info["config"]
        assert (config["steps"], config["student_rate"]) == (steps, rate)
    told = ("train", teacher, "--out", out, *options, "--steps", 54, "--student-rate", 1e-5)
    assert "was begun with --student-rate 3.85e-05, not 1e-05" in refusal(*told)


def test_a_run_begun_before_an_option_existed_goes_on_with_its_default(teacher, tmp_path):
    out = tmp_path / "run"
    train(teacher, out, "--minutes", 1e-9)
    info = json.loads((out / "hsivi.json").read_text())
    del info["config"]["fake_score"], info["starts"]
    (out / "hsivi.json").write_text(json.dumps(info))
    train(teacher, out)
    train(teacher, tmp_path / "whole")
    assert student_files(out) == student_files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("option", "old", "new"),
    [
        ("--nfe", 2, "1,2"),
        ("--fake-score", "auto", "told"),
        ("--seed", 0, 1),
        ("--batch-size", 4, 8),
        ("--steps", 2, 1),
        ("--noise-share", 1, 0.5),
    ],
)
def test_another_setting_is_refused_by_name_on_resume(teacher, tmp_path, option, old, new):
    out = tmp_path / "run"
    train(teacher, out)
    before = tree(out)
    told = refusal("train", teacher, "--out", out, *QUICK, option, new)
    assert f"{option} {old}, not {new}" in told
    assert tree(out) == before


def test_logging_evaluation_and_time_may_differ_on_resume(teacher, tmp_path):
    train(teacher, tmp_path / "run", "--minutes", 1e-9)
    train(teacher, tmp_path / "run", "--minutes", 60, "--checkpoint-every", 1, "--eval-every", 7)
    assert load_student(tmp_path / "run").info["step"] == 2


def test_another_teacher_is_refused_on_resume(teacher, save_teacher, tmp_path):
    train(teacher, tmp_path / "run", "--steps", 0)
    other = save_teacher(seed=5, **TINY)
    told = refusal("train", other, "--out", tmp_path / "run", *QUICK)
    assert "another teacher, with other weights" in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"beta_end": 0.03}, "other noise schedule (linear 0.0001 to 0.02, 1000 times"),
        ({"trained_betas": [0.01] * 1000}, "other noise schedule"),
        ({"prediction_type": "v_prediction"}, "other prediction type (epsilon"),
    ],
)
def test_a_run_is_not_resumed_on_a_schedule_that_has_changed(save_teacher, tmp_path, change, told):
    teacher, run = save_teacher(**TINY), tmp_path / "run"
    train(teacher, run, "--steps", 1)
    edit_json(teacher / "scheduler" / "scheduler_config.json", **change)
    before = tree(run)
    assert told in refusal("train", teacher, "--out", run, *QUICK)
    assert told in refusal("train", teacher, "--out", tmp_path / "x", *QUICK, "--init", run)
    assert tree(run) == before


def test_a_run_that_keeps_no_schedule_of_its_teacher_is_resumed(save_teacher, tmp_path):
    teacher, run = save_teacher(**TINY), tmp_path / "run"
    train(teacher, run, "--steps", 1)
    told = json.loads((run / "hsivi.json").read_text())["teacher"]
    assert told.pop("schedule") == "linear 0.0001 to 0.02, 1000 times"
    edit_json(run / "hsivi.json", teacher=told)
    train(teacher, run)


def test_a_finished_student_without_its_checkpoint_is_left_alone(teacher, tmp_path):
    out = tmp_path / "run"
    train(teacher, out)
    shutil.rmtree(out / "checkpoint")
    before = tree(out)
    told = refusal("train", teacher, "--out", out, *QUICK, "--steps", 9)
    assert "without its checkpoint" in told and tree(out) == before


def test_a_regressed_student_without_its_checkpoint_is_left_alone(teacher, tmp_path):
    out, options = tmp_path / "run", ("--regress-steps", 2, "--steps", 0)
    train(teacher, out, *options)
    shutil.rmtree(out / "checkpoint")
    before = tree(out)
    told = refusal("train", teacher, "--out", out, *QUICK, *options)
    assert "without its checkpoint" in told and tree(out) == before


@pytest.mark.filterwarnings("ignore:.*no supported trackers")  # none is installed here
def test_a_kill_where_trackers_start_leaves_a_run_to_go_on_with(teacher, tmp_path, monkeypatch):
    def killed(self, *names, **settings):
        (tmp_path / "x" / "hsivi").mkdir()  # what a tracker writes first
        raise SystemExit(9)

    monkeypatch.setattr(train_module.importlib.util, "find_spec", lambda name: True)
    with monkeypatch.context() as context:
        context.setattr(Accelerator, "init_trackers", killed)
        train(teacher, tmp_path / "x", "--log-with", "tensorboard", exit_code=9)
    train(teacher, tmp_path / "x")
    assert load_student(tmp_path / "x").info["step"] == 2


def test_what_befell_the_exported_files_is_mended_from_the_checkpoint(teacher, tmp_path):
    out = tmp_path / "run"
    train(teacher, out)
    before = tree(out)
    (out / "unet" / "config.json").write_text("")
    (out / "chain.safetensors").unlink()
    train(teacher, out)
    assert tree(out) == before


def test_a_best_student_that_is_gone_gives_way_to_the_last_average(teacher, tmp_path):
    save_detector(tmp_path / "detector")
    save_npz(torch.randint(256, (9, 8, 8, 1), dtype=torch.uint8), tmp_path / "real.npz")
    judged = ("--reference", tmp_path / "real.npz", "--detector", tmp_path / "detector")
    out = tmp_path / "run"
    train(teacher, out, *judged, "--eval-count", 9)
    shutil.rmtree(out / "unet")
    result = train(teacher, out, *judged, "--eval-count", 9)
    assert "are gone" in result.stderr
    found = load_student(out)
    ema = load_checkpoint(out / "checkpoint")[0]
    assert found.info["best"]["step"] == 2  # judged anew
    for name, tensor in found.model.unet.state_dict().items():
        assert tensor.equal(ema[f"ema.{name}"])


def test_a_new_best_is_kept_with_a_checkpoint_of_its_step(teacher, tmp_path, monkeypatch):
    save_detector(tmp_path / "detector")
    save_npz(torch.randint(256, (9, 8, 8, 1), dtype=torch.uint8), tmp_path / "real.npz")
    judged = ("--reference", tmp_path / "real.npz", "--detector", tmp_path / "detector")
    falling = iter((10.0, 9.0, 8.0, 7.0))  # the start, then three steps
    monkeypatch.setattr(evaluation, "frechet_distance", lambda *a: next(falling))
    play_round = distill.play_round

    def killed(networks, config, round_):
        if round_ == 4:
            raise SystemExit(9)
        return play_round(networks, config, round_)

    monkeypatch.setattr(train_module, "play_round", killed)
    out, options = tmp_path / "run", (*judged, "--eval-count", 9, "--eval-every", 1)
    train(teacher, out, *options, "--steps", 9, "--checkpoint-every", 9, exit_code=9)
    state = load_checkpoint(out / "checkpoint")[1]
    assert state["best"]["step"] == load_student(out).info["best"]["step"] == 3


def judged_by(folder, images):
    """Options that judge by images in a file of one name."""
    if not (folder / "detector").exists():
        save_detector(folder / "detector")
    save_npz(images, folder / "real.npz")
    judged = ("--reference", folder / "real.npz", "--detector", folder / "detector")
    return (*judged, "--eval-count", 9, "--eval-every", 1)


def test_a_reference_replaced_under_its_name_is_another_ruler(teacher, tmp_path, monkeypatch):
    noise = torch.randint(256, (9, 8, 8, 1), dtype=torch.uint8)
    steps = iter((9.0, 5.0, 4.0, 6.0, 7.0))  # the start comes first
    monkeypatch.setattr(evaluation, "frechet_distance", lambda *a: next(steps))
    options = ("--decay", "none", "--steps")
    train(teacher, tmp_path / "x", *judged_by(tmp_path, noise), *options, 2)
    (tmp_path / "elsewhere").mkdir()
    moved = judged_by(tmp_path / "elsewhere", noise)
    train(teacher, tmp_path / "x", *moved, *options, 3)  # another name of the same images
    assert load_student(tmp_path / "x").info["best"]["step"] == 2
    train(teacher, tmp_path / "x", *judged_by(tmp_path, 255 - noise // 8), *options, 4)
    assert load_student(tmp_path / "x").info["best"]["step"] == 4


def test_of_a_best_whose_reference_has_no_moments_the_name_is_believed():
    now = {"count": 9, "detector": "d", "reference": "r", "moments": [1.0, 2.0, 3.0]}
    old = {"count": 9, "detector": "d", "reference": "r"}
    assert evaluation.same_ruler(now, old) and not evaluation.same_ruler(now, old | {"count": 8})
    assert not evaluation.same_ruler(now, old | {"reference": "s"})
    near, far = [1.00001, 2.0, 3.0], [1.001, 2.0, 3.0]
    assert evaluation.same_ruler(now, now | {"moments": near, "reference": "s"})
    assert not evaluation.same_ruler(now, now | {"moments": far})


def test_a_reference_added_to_a_finished_run_judges_its_student(teacher, tmp_path):
    out = tmp_path / "run"
    train(teacher, out)
    before = tree(out / "unet")
    judged = judged_by(tmp_path, torch.randint(256, (9, 8, 8, 1), dtype=torch.uint8))
    told = train(teacher, out, *judged).stderr
    assert f"the student in {out} has not been judged" in told and "step 2: distance" in told
    assert load_student(out).info["best"]["step"] == 2 and tree(out / "unet") == before
    assert [row["step"] for row in rows(out / "evaluations.jsonl")] == [2]
    assert "step 2: distance" not in train(teacher, out, *judged).stderr  # once


def test_an_untrained_student_is_judged_by_a_reference_that_is_named(teacher, tmp_path):
    judged = judged_by(tmp_path, torch.randint(256, (9, 8, 8, 1), dtype=torch.uint8))
    train(teacher, tmp_path / "later", "--steps", 0)
    told = train(teacher, tmp_path / "later", "--steps", 0, *judged).stderr
    assert f"the student in {tmp_path / 'later'} has not been judged" in told
    assert "start: distance" in train(teacher, tmp_path / "now", "--steps", 0, *judged).stderr
    best = [load_student(tmp_path / name).info["best"] for name in ("later", "now")]
    assert best[0]["distance"] == best[1]["distance"] and best[1]["step"] == 0


def test_a_collapse_is_told_once_and_the_best_is_kept(teacher, tmp_path, monkeypatch):
    save_detector(tmp_path / "detector")
    save_npz(torch.randint(256, (9, 8, 8, 1), dtype=torch.uint8), tmp_path / "real.npz")
    judged = ("--reference", tmp_path / "real.npz", "--detector", tmp_path / "detector")
    measured = [4.0, 3.0, 2.0, 5.0, 5.0, 3.0, 5.0, 5.0, 5.0, 9.0]  # the start's comes first
    later = iter(measured)
    monkeypatch.setattr(evaluation, "frechet_distance", lambda *a: next(later))
    out, options = tmp_path / "run", (*judged, "--eval-count", 9, "--eval-every", 1, "--steps", 9)
    told = ""
    for _ in range(10):  # the warm-up and nine steps, each by a process of its own
        told += train(teacher, out, *options, "--minutes", 1e-9).stderr
    warned = [line for line in told.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 1 and f"{out} keeps that of step 2" in warned[0]
    assert told.index("step 8: distance") < told.index(warned[0]) < told.index("step 9: distance")
    assert load_student(out).info["best"]["step"] == 2


@pytest.mark.parametrize("damage", [True, False], ids=["damaged", "rolled back"])
def test_a_best_student_outlives_its_checkpoint(teacher, tmp_path, monkeypatch, damage):
    save_detector(tmp_path / "detector")
    save_npz(torch.randint(256, (9, 8, 8, 1), dtype=torch.uint8), tmp_path / "real.npz")
    judged = ("--reference", tmp_path / "real.npz", "--detector", tmp_path / "detector")
    falls = {0: 10.0, 1: 9.0, 2: 8.0, 3: 7.0, 4: 9.0}
    evaluate = evaluation.evaluate

    def judge(*arguments):
        found = evaluate(*arguments)
        return found | {"distance": falls[found["step"]]}

    monkeypatch.setattr(training_module, "evaluate", judge)
    out, options = tmp_path / "run", (*judged, "--eval-count", 9, "--eval-every", 1)
    train(teacher, out, *options, "--steps", 3, "--decay", "none")
    best = tree(out / "unet")
    if damage:
        (checkpoints(out / "checkpoint")[-1] / "state.json").write_text("{}")
    else:
        go_back(out / "checkpoint", {"rollbacks": 1})
    train(teacher, out, *options, "--steps", 4, "--decay", "none")
    assert load_student(out).info["best"]["step"] == 3 and tree(out / "unet") == best


def test_a_kill_before_the_best_student_is_exported_leaves_its_checkpoint_to_mend_it(
    teacher, tmp_path, monkeypatch
):
    save_detector(tmp_path / "detector")
    save_npz(torch.randint(256, (9, 8, 8, 1), dtype=torch.uint8), tmp_path / "real.npz")
    judged = ("--reference", tmp_path / "real.npz", "--detector", tmp_path / "detector")
    options = (*judged, "--eval-count", 9, "--eval-every", 1, "--steps", 3)
    train(teacher, tmp_path / "whole", *options)
    best = load_student(tmp_path / "whole").info["best"]["step"]
    save = training_module.save_student

    def killed(out, unet, scheduler, chains, scales, info, card):
        if info["step"] == best:
            raise SystemExit(9)
        save(out, unet, scheduler, chains, scales, info, card)

    with monkeypatch.context() as context:
        context.setattr(training_module, "save_student", killed)
        train(teacher, tmp_path / "broken", *options, exit_code=9)
    train(teacher, tmp_path / "broken", *options)
    assert student_files(tmp_path / "broken") == student_files(tmp_path / "whole")


def on_a_terminal():
    """What a shell does for a process of a terminal."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    heeds_signals()


def test_a_closed_terminal_saves_and_loses_nothing(teacher, tmp_path):
    out, (master, slave) = tmp_path / "run", os.openpty()
    command = [sys.executable, "-m", "hsivi_cli", "train", teacher, "--out", out, *map(str, QUICK)]
    process = subprocess.Popen(
        [*command, "--steps", "100000"], stdin=slave, stdout=slave, stderr=slave,
        start_new_session=True, preexec_fn=on_a_terminal,
    )  # fmt: skip
    try:
        os.close(slave)
        os.set_blocking(master, False)
        end = time.monotonic() + 300
        while not (out / "metrics.jsonl").exists() and time.monotonic() < end:
            time.sleep(0.1)
            with contextlib.suppress(BlockingIOError):
                os.read(master, 10_000)
        os.close(master)
        assert process.wait(timeout=300) == 129
    finally:
        process.kill()
    assert load_student(out).info["step"] == len(rows(out / "metrics.jsonl")) >= 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--reference nowhere", "nowhere: neither a file"),
        ("--reference {}", "no image in this folder"),
        ("--reference teacher --detector nowhere", "detector nowhere: not found"),
        ("--reference {}/a.png --detector-weights nowhere", "nowhere: not readable (there is"),
        ("--init nowhere", "there is no student at nowhere"),
        ("--adversarial 0.5 --data nowhere", "nowhere: neither a file"),
        ("--adversarial 0.5 --data {}", "no image in this folder"),
    ],
)
def test_what_was_typed_is_looked_at_before_a_teacher_is_loaded(
    tmp_path, monkeypatch, options, told
):
    monkeypatch.setattr(train_module, "load_teacher", None)  # would fail
    (tmp_path / "empty").mkdir()
    options = options.format(tmp_path / "empty").split()
    line = refusal("train", "someone/teacher", "--out", tmp_path / "x", *QUICK, *options)
    assert told in line and not (tmp_path / "x").exists()


def test_a_run_goes_on_without_what_it_was_begun_from(teacher, tmp_path):
    train(teacher, tmp_path / "first", "--steps", 0)
    options = ("--init", tmp_path / "first", "--steps", 1)
    train(teacher, tmp_path / "run", *options)
    before = tree(tmp_path / "run")
    shutil.rmtree(tmp_path / "first")
    train(teacher, tmp_path / "run", *options)
    assert tree(tmp_path / "run") == before


def test_a_second_process_in_a_runs_folder_is_refused(teacher, tmp_path):
    out = tmp_path / "run"
    with holding(out):
        assert f"another process runs in {out}" in refusal("train", teacher, "--out", out, *QUICK)
    assert not out.exists()
    train(teacher, out)
    before = tree(out)
    with holding(out):
        assert "another process" in refusal("train", teacher, "--out", out, *QUICK, "--steps", 9)
    assert tree(out) == before


def test_a_signal_that_nohup_has_taken_is_left_alone():
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
        assert interrupt.number == 0 and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, old)


def test_a_folder_of_something_else_is_refused_and_left_alone(teacher, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    (tmp_path / "thesis" / ".chapter.tmp").write_text("and more")
    before = tree(tmp_path / "thesis")
    told = refusal("train", teacher, "--out", tmp_path / "thesis", *QUICK)
    assert "no run of hsivi" in told and tree(tmp_path / "thesis") == before


def test_a_damaged_description_of_a_run_is_one_line(teacher, tmp_path):
    out = tmp_path / "run"
    train(teacher, out, "--steps", 0)
    whole = json.loads((out / "hsivi.json").read_text())
    best = {"step": 3, "distance": math.nan, "count": 9, "detector": "d", "moments": ["x"]}
    best |= {"distances": {"2": 9**400}, "reference": "r", "start": {}}  # no float is as large
    (out / "hsivi.json").write_text(json.dumps(whole | {"best": best}))
    assert "no usable distance, distances, moments, start" in refusal("info", out)
    (out / "hsivi.json").write_text(json.dumps(whole | {"best": {"step": 3}}))
    for verb in (("train", teacher, *QUICK, "--out"), ("info",)):
        told = refusal(*verb, out)
        assert "no usable distance, count, detector, reference, distances" in told
    parts = {
        "teacher": [{"name": ["a"]}, {"digest": 3}, {"subfolder": 1}],
        "starts": [{"x": "ddim"}, {"9" * 5000: "ddim"}, {"2": 1}],
        "clip": [{"reach": 0}, {"reach": "1"}, {"reach": 1, "quantile": -4}, {"range": 1}],
        "seconds": [-1, 1e308],
        "regressed": ["x"],
    }
    for key, value in ((key, value) for key, values in parts.items() for value in values):
        other = whole[key] | value if key == "teacher" else value
        (out / "hsivi.json").write_text(json.dumps(whole | {key: other}))
        told = refusal("train", teacher, "--out", out, *QUICK)
        assert f"hsivi.json describes no run ({key} is" in told
    for steps in (None, "3", []):
        (out / "hsivi.json").write_text(json.dumps(whole | {"config": {"steps": steps}}))
        told = refusal("train", teacher, "--out", out, *QUICK)
        assert "was begun with" in told
    once = whole["config"] | {"fake_updates": True}  # which to Python is 1
    (out / "hsivi.json").write_text(json.dumps(whole | {"config": once}))
    told = refusal("train", teacher, "--out", out, *QUICK)
    assert "was begun with --fake-updates True, not 1" in told
    for content in ("{", "[]", "[" * 100_000, '{"format": 1}'):
        (out / "hsivi.json").write_text(content)
        assert "hsivi.json" in refusal("train", teacher, "--out", out, *QUICK)


# ---- what can go wrong on the way ----------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_with_advice_and_keeps_the_last_checkpoint(
    teacher, tmp_path, monkeypatch
):
    out, loss = tmp_path / "run", distill.fake_score_loss
    play_round = distill.play_round

    def broken_from_step_3(networks, config, round_):
        if round_ == 3:
            monkeypatch.setattr(
                distill, "fake_score_loss", lambda *args: loss(*args) * float("nan")
            )
        return play_round(networks, config, round_)

    monkeypatch.setattr(train_module, "play_round", broken_from_step_3)
    options = ("--steps", 6, "--checkpoint-every", 2, "--on-nan", "stop")
    told = refusal("train", teacher, "--out", out, *QUICK, *options)
    assert "not finite at step 3" in told and "--student-rate" in told
    assert kept_checkpoints(out) == ["step-000003"] and "step-000003" in told
    tensors, state = checkpoint.load_checkpoint(out / "checkpoint")
    assert state["round"] == 3 and all(t.isfinite().all() for t in tensors.values())
    monkeypatch.undo()
    train(teacher, out, "--steps", 6)  # a passing fault: the same line goes on
    train(teacher, tmp_path / "whole", "--steps", 6)
    assert student_files(out) == student_files(tmp_path / "whole")


def bad_batches(monkeypatch, *rounds):
    """In these rounds the gradients of the fake score are infinite."""
    play_round, loss = distill.play_round, distill.fake_score_loss

    def played(networks, config, round_):
        with monkeypatch.context() as context:
            if round_ in rounds:
                context.setattr(distill, "fake_score_loss", lambda *a: loss(*a) * float("inf"))
            return play_round(networks, config, round_)

    monkeypatch.setattr(train_module, "play_round", played)


def test_a_batch_of_infinite_gradients_is_skipped_counted_and_repeated_by_a_resume(
    teacher, tmp_path, monkeypatch
):
    bad_batches(monkeypatch, 3)
    told = train(teacher, tmp_path / "whole", "--steps", 5, "--checkpoint-every", 1).stderr
    assert "warning: fake_loss, fake_norm not finite at step 3: skipped, 1 of the 3" in told
    counted = rows(tmp_path / "whole" / "metrics.jsonl")
    assert counted[2] == {"step": 3, "skipped": ["fake_loss", "fake_norm"]} and len(counted) == 5
    assert all(map(finite, counted[:2] + counted[3:]))
    for _ in range(6):
        train(teacher, tmp_path / "broken", "--steps", 5, "--minutes", 1e-9)
    assert student_files(tmp_path / "broken") == student_files(tmp_path / "whole")


def test_batches_that_are_never_finite_end_in_advice_for_their_phase(
    teacher, tmp_path, monkeypatch
):
    bad_batches(monkeypatch, *range(9))
    lines = train(teacher, tmp_path / "x", "--steps", 9, exit_code=1).stderr.splitlines()
    assert len(lines) == 4 and "not finite at step 3; there was no checkpoint" in lines[3]
    assert "--student-rate or --fake-rate" in lines[3]
    options = ("--on-nan", "stop", "--fake-warmup", 3)
    told = refusal("train", teacher, "--out", tmp_path / "y", *QUICK, *options)
    assert "the fake score's warm-up" in told and "with a lower --fake-rate" in told


def test_a_rollback_halves_the_rates_and_repeats_in_another_process(teacher, tmp_path, monkeypatch):
    play_round, rates = distill.play_round, []

    def diverging(networks, config, round_):
        (group,) = networks.fake_optimizer.param_groups
        rates.append((round_, config.student_rate, config.fake_rate, group["lr"]))
        measured = play_round(networks, config, round_)
        at_fault = round_ == 4 and config.student_rate > 5e-4
        return measured | ({"loss": float("nan")} if at_fault else {})

    monkeypatch.setattr(train_module, "play_round", diverging)
    options = ("--steps", 5, "--checkpoint-every", 1, "--on-nan", "rollback", "--fake-rate", 4e-4)
    told = train(teacher, tmp_path / "whole", *options).stderr
    assert "the loss is not finite: back to step-000003, at rates times 0.5" in told
    assert rates[4:6] == [(4, 1e-3, 4e-4, 4e-4), (3, 5e-4, 2e-4, 2e-4)]
    for _ in range(7):
        train(teacher, tmp_path / "broken", *options, "--minutes", 1e-9)
    assert student_files(tmp_path / "broken") == student_files(tmp_path / "whole")
    assert load_checkpoint(tmp_path / "whole" / "checkpoint")[1]["rollbacks"] == 1


def test_a_run_that_kept_nothing_binds_no_settings(teacher, tmp_path):
    out = tmp_path / "run"
    absurd = ("--student-rate", 1e5, "--steps", 9, "--on-nan", "stop")
    assert "no checkpoint yet" in refusal("train", teacher, "--out", out, *QUICK, *absurd)
    train(teacher, out)
    assert load_student(out).info["config"]["student_rate"] == 1e-3


@pytest.mark.parametrize(
    ("rates", "told"),
    [
        (("--fake-rate", 1e5), ("not finite", "--fake-rate")),
        (("--student-rate", 9e5, "--steps", 1), ("--nfe 2 draws NaN", "step 1; ", "-rate")),
        (
            ("--regress-rate", 9e5, "--regress-steps", 1, "--steps", 0),
            ("--nfe 2 draws NaN", "1 updates of regression", "a lower --regress-rate"),
        ),
    ],
)
def test_absurd_rates_end_in_advice_not_in_a_broken_student(teacher, tmp_path, rates, told):
    absurd = ("--rate-warmup", 0, "--decay", "none", "--ema", 0, *rates)
    line = train(teacher, tmp_path / "x", *absurd, exit_code=1).stderr.splitlines()[-1]
    assert all(word in line for word in (*told, "no checkpoint")), line
    assert not (tmp_path / "x" / "unet").exists() and not (tmp_path / "x" / "checkpoint").exists()


def spoil(file, name, value=float("nan")):
    """Set one weight of a safetensors file."""
    tensors = load_file(file)
    tensors[name].view(-1)[0] = value
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_teacher_that_is_not_finite_is_refused_by_its_weights_name(save_teacher, tmp_path, value):
    teacher, out = save_teacher(**TINY), tmp_path / "run"
    spoil(teacher / "unet" / "diffusion_pytorch_model.safetensors", "conv_in.weight", value)
    for line in (
        refusal("info", teacher),
        refusal("train", teacher, "--out", out, *QUICK, "--steps", 0),
        refusal("sample", teacher, "--solver", "ddim", "--nfe", 2, "--grid", tmp_path / "g.png"),
    ):
        assert ".safetensors: conv_in.weight holds NaN or infinite values (1 of 72)" in line
    assert not out.exists()


def test_a_student_that_is_not_finite_is_refused_by_its_weights_name(teacher, tmp_path):
    out = tmp_path / "run"
    train(teacher, out)
    spoil(out / "unet" / "diffusion_pytorch_model.safetensors", "conv_out.bias")
    assert "conv_out.bias holds NaN" in refusal("sample", out, "--grid", tmp_path / "g.png")
    with pytest.raises(HsiviError, match=r"conv_out\.bias holds NaN"):
        HSIVIPipeline.from_pretrained(out)
    spoil(out / "chain.safetensors", "2.log_scale")
    assert "2.log_scale holds NaN" in refusal("sample", out, "--grid", tmp_path / "g.png")


@pytest.mark.parametrize("name", ["ema.conv_in.weight", "ema_scale", "fake_optimizer.0.exp_avg_sq"])
def test_nothing_that_is_not_finite_is_kept(teacher, tmp_path, monkeypatch, name):
    out = tmp_path / "run"
    train(teacher, out, "--minutes", 1e-9)  # the warm-up, and its checkpoint
    before = tree(out)

    def spoiled(networks):
        tensors = training_tensors(networks)
        return tensors | {name: torch.full_like(tensors[name], float("inf"))}

    monkeypatch.setattr(training_module, "training_tensors", spoiled)
    line = refusal("train", teacher, "--out", out, *QUICK)
    assert f"{name} holds NaN or infinite values" in line and "step-000001 is the last good" in line
    after = tree(out)
    kept = [file for file in before if file.suffix == ".safetensors" or "checkpoint" in str(file)]
    assert all(after[file] == before[file] for file in kept)


def test_out_of_memory_names_the_option_that_halves_it(teacher, tmp_path, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train_module, "play_round", full)
    told = refusal("train", teacher, "--out", tmp_path / "x", *QUICK, "--accumulate", 2)
    assert "out of memory" in told and "--accumulate 4" in told


def test_out_of_memory_in_an_evaluation_names_what_reaches_there(teacher, tmp_path, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(evaluation, "draw", full)
    judged = judged_by(tmp_path, torch.randint(256, (9, 8, 8, 1), dtype=torch.uint8))
    options = ("--eval-count", 1000, "--checkpoint-every", 1)
    told = refusal("train", teacher, "--out", tmp_path / "x", *QUICK, *judged, *options)
    assert "draws 256 images at once: --eval-count 128 or fewer" in told


@pytest.mark.parametrize("place", ["save_file", "replace"])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    teacher, tmp_path, monkeypatch, place
):
    out = tmp_path / "run"
    train(teacher, out, "--minutes", 1e-9)
    before = tree(out / "checkpoint")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    if place == "save_file":
        monkeypatch.setattr(whole, "save_file", full)
    else:
        replace = os.replace
        monkeypatch.setattr(
            whole.os,
            "replace",
            lambda a, b: full() if "checkpoint" in str(b) else replace(a, b),
        )
    told = refusal("train", teacher, "--out", out, *QUICK)
    assert "No space left" in told and "free some space" in told
    assert tree(out / "checkpoint") == before
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]
    monkeypatch.undo()
    train(teacher, out)
    train(teacher, tmp_path / "whole")
    assert student_files(out) == student_files(tmp_path / "whole")


# ---- what lies in the folder ---------------------------------------------------------------------


def test_a_run_holds_two_checkpoints_and_no_pickle(teacher, tmp_path):
    out = tmp_path / "run"
    train(teacher, out, "--steps", 5, "--checkpoint-every", 1)
    assert kept_checkpoints(out) == ["step-000005", "step-000006"]
    assert {name.suffix for name in tree(out)} == {".safetensors", ".json", ".jsonl", ".md", ""}
    for name, content in tree(out).items():  # and each is what its name says
        assert load_file(out / name) if name.suffix == ".safetensors" else content.decode()


def test_without_a_reference_the_last_average_is_what_is_exported(teacher, tmp_path):
    out = tmp_path / "run"
    train(teacher, out, "--steps", 3)
    tensors, _ = checkpoint.load_checkpoint(out / "checkpoint")
    exported = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    assert exported.keys() == {n[4:] for n in tensors if n.startswith("ema.")}
    assert all(torch.equal(exported[name], tensors[f"ema.{name}"]) for name in exported)
    assert any(not torch.equal(exported[name], tensors[f"student.{name}"]) for name in exported)


def test_metrics_repeat_and_times_lie_elsewhere(teacher, tmp_path):
    train(teacher, tmp_path / "run")
    told = rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in told] == [1, 2]
    keys = {"step", "nfe", "loss", "divergence", "fake_loss", "norm", "fake_norm"}
    assert all(row.keys() == keys and finite(row) for row in told)
    times = rows(tmp_path / "run" / "timing.jsonl")
    assert [row.keys() for row in times] == [{"step", "seconds", "images_per_second"}] * 2


def test_the_model_card_holds_the_settings_and_code_that_runs(teacher, tmp_path):
    out = tmp_path / "run"
    train(teacher, out, "--steps", 0, "--noise-share", "0.25,0.75")
    card = (out / "README.md").read_text()
    assert "| noise_share | 0.25,0.75 |" in card and str(teacher) in card
    code = card.split("```python\n")[1].split("\n```\n")[0]
    ast.parse(code)
    assert str(out) in code and "num_inference_steps=2" in code


def test_training_is_quiet_where_stderr_is_no_terminal(teacher, tmp_path):
    result = train(teacher, tmp_path / "run")
    lines = result.stderr.splitlines()  # what it made, and two of how to go on
    assert result.stdout == "" and len(lines) == 3 and "\r" not in result.stderr


# ---- the untrained student, the best student -----------------------------------------------------


@pytest.mark.parametrize(
    "options", [("--noise-share", "0.3"), ("--start", "deis", "--noise-share", "0")]
)
def test_no_steps_write_the_untrained_chain_over_the_teacher(teacher, tmp_path, options):
    train(teacher, tmp_path / "run", "--steps", 0, *options)
    student = load_student(tmp_path / "run")
    loaded = load_teacher(str(teacher))
    given = {
        name[2:].replace("-", "_"): value for name, value in zip(*[iter(options)] * 2, strict=True)
    }
    chain = make_chain(TrainConfig(**given), 2, loaded)
    untrained = Sampler(
        "", "student", loaded.network(), chain, torch.zeros(1, 1, 1, 1), (1, 8, 8), None, ""
    )
    assert torch.equal(images_of(student_sampler(student)), images_of(untrained))
    if "deis" in options:
        assert torch.equal(images_of(untrained), images_of(solver_sampler(loaded, "deis", 2)))


def test_the_best_evaluation_is_exported_and_remembered_across_resume(teacher, tmp_path):
    # the reference is what the untrained student draws: training can only lead away from it
    save_detector(tmp_path / "detector")
    train(teacher, tmp_path / "start", "--steps", 0)
    near = tmp_path / "near.npz"
    hsivi("sample", tmp_path / "start", "--seeds", f"{EVAL_SEED}-{EVAL_SEED + 39}", "--out", near)
    out = tmp_path / "run"
    judged = ("--reference", near, "--detector", tmp_path / "detector", "--eval-every", 1)
    judged += ("--eval-count", 40, "--student-rate", 1e-2, "--steps", 4, "--checkpoint-every", 1)
    for _ in range(5):
        train(teacher, out, *judged, "--minutes", 1e-9)
    found = load_student(out).info
    told = rows(out / "evaluations.jsonl")
    assert [row["step"] for row in told] == [0, 1, 2, 3, 4]
    pictures = ["start-2.png", *(f"step-{n:06d}-2.png" for n in (1, 2, 3, 4))]
    assert sorted(p.name for p in (out / "eval").iterdir()) == pictures
    best = min(told, key=lambda row: row["distance"])
    assert best.items() <= (found["best"] | {"nfe": 2}).items() and best["step"] < 4
    assert found["best"]["distances"] == {"2": best["distance"]}
    assert found["best"]["start"] == {key: told[0][key] for key in ("distance", "recall")}

    detector = load_detector(str(tmp_path / "detector"))
    seeds = range(EVAL_SEED, EVAL_SEED + 40)
    drawn, _ = moments_of(draw(student_sampler(load_student(out)), seeds, 40, "cpu"), detector)
    hsivi("fid", near, "--detector", tmp_path / "detector", "--save-stats", tmp_path / "s.npz")
    reference = load_statistics(tmp_path / "s.npz").moments
    assert frechet_distance(drawn, reference) == pytest.approx(best["distance"], rel=1e-9)
    assert f"{best['distance']:.2f}" in (out / "README.md").read_text()

    # by another count a distance means something else: the old best is no measure of the new
    train(teacher, out, *judged, "--eval-count", 20, "--steps", 5)
    assert load_student(out).info["best"]["step"] == 5


def test_a_detector_that_does_not_take_the_images_is_refused_before_training(teacher, tmp_path):
    save_detector(tmp_path / "detector", size=4)
    save_npz(torch.zeros(9, 4, 4, 1, dtype=torch.uint8), tmp_path / "small.npz")
    judged = ("--reference", tmp_path / "small.npz", "--detector", tmp_path / "detector")
    told = refusal("train", teacher, "--out", tmp_path / "run", *QUICK, *judged)
    assert "takes images of 4 x 4" in told and not (tmp_path / "run").exists()


def test_an_evaluation_that_no_checkpoint_knows_is_made_once(teacher, tmp_path, monkeypatch):
    save_detector(tmp_path / "detector")
    hsivi("sample", teacher, "--solver", "ddim", "--nfe", 2, "--count", 20, "--out",
          tmp_path / "real.npz", "--device", "cpu")  # fmt: skip
    out = tmp_path / "run"
    judged = ("--reference", tmp_path / "real.npz", "--detector", tmp_path / "detector")
    judged += ("--eval-count", 20, "--regress-steps", 2)
    with monkeypatch.context() as context:  # the power fails after the regressed student's

        def fail(*arguments):
            raise KeyboardInterrupt

        context.setattr("hsivi_cli.files.run.save_checkpoint", fail)
        hsivi("train", teacher, "--out", out, *QUICK, *judged, exit_code=130)
    assert [row["step"] for row in rows(out / "evaluations.jsonl")] == [0]
    train(teacher, out, *judged)
    told = rows(out / "evaluations.jsonl")  # of the start, the regressed student, and the last
    assert [(row["step"], row["round"]) for row in told] == [(0, 0), (0, 1), (2, 4)]


def test_a_students_minutes_count_those_of_the_run_it_began_with(teacher, tmp_path):
    train(teacher, tmp_path / "first")
    edit_json(tmp_path / "first" / "hsivi.json", seconds=600.0)
    train(teacher, tmp_path / "second", "--init", tmp_path / "first", "--minutes", 1e-9)
    train(teacher, tmp_path / "second", "--init", tmp_path / "first")
    assert 600 < load_student(tmp_path / "second").info["seconds"] < 700
    assert all(row["seconds"] > 600 for row in rows(tmp_path / "second" / "timing.jsonl"))


# ---- every option, end to end --------------------------------------------------------------------

OPTIONS = [
    "--noise-share 0.5",
    "--noise-share 0.2,1",
    "--noise-share eta:0.2 --grid quad",
    "--start deis --noise-share 0",
    "--start dpm++2 --noise-share 0.5",
    "--start dpm++3-lu --noise-share 0 --nfe 3",
    "--levels own --noise-share 0.5 --grid uniform --objective score-matching",
    "--levels above --objective score-matching --a 1.0 --weight sid",
    "--objective score-matching --weight ratio --fake-weight sigma2",
    "--order sequential --nfe 3",
    "--grid 0,300,650 --optimizer adamw --decay none --ema 0.5",
    "--grid log-snr --grid-top 700",
    "--preset hsivi --nfe 3 --steps 2 --batch-size 4 --fake-updates 2",
    "--preset sid --steps 2 --batch-size 4 --nfe 1",
    "--dtype bfloat16",
    "--fake-score told",
    "--levels above --fake-score shared",
]


@pytest.mark.parametrize("options", OPTIONS)
def test_every_chain_and_objective_trains_and_draws(teacher, tmp_path, options):
    out = tmp_path / "run"
    train(teacher, out, *options.split())
    told = rows(out / "metrics.jsonl")
    assert len(told) == 2 and all(map(finite, told))
    student = load_student(out)
    start = load_teacher(str(teacher)).unet.state_dict()
    assert any(not torch.equal(start[n], t) for n, t in student.model.unet.state_dict().items())
    assert all(t.dtype == torch.float32 for t in student.model.unet.state_dict().values())
    images = images_of(student_sampler(student))
    assert images.shape == (6, 8, 8, 1) and len(images.unique()) > 1


@pytest.mark.parametrize(
    ("kind", "shape"), [("scalar", (1, 1, 1, 1)), ("layer", (2, 1, 1, 1)), ("pixel", (1, 1, 8, 8))]
)
def test_the_noise_scale_trains_with_its_shape(teacher, tmp_path, kind, shape):
    out = tmp_path / "run"
    options = ("--objective", "score-matching", "--noise-share", "0.5", "--log-scale", kind)
    train(teacher, out, *options, "--steps", 3)
    scale = load_student(out).log_scales[2]
    assert scale.shape == shape and (scale != 0).any(dim=(1, 2, 3)).all()


# ---- one student for several budgets -------------------------------------------------------------


def test_one_student_of_several_budgets_holds_the_chain_of_each(teacher, tmp_path):
    out = tmp_path / "run"
    result = train(teacher, out, "--nfe", "1,3", "--steps", 4)
    assert "a student of 1 or 3 calls, 4 steps" in result.stderr
    student, loaded = load_student(out), load_teacher(str(teacher))
    assert student.info["nfe"] == [1, 3] == sorted(student.chains)
    for nfe, chain in student.chains.items():
        alone = make_chain(TrainConfig(), nfe, loaded)
        assert all(torch.equal(getattr(chain, n), getattr(alone, n)) for n in ("time", "cx", "ce"))
        sampler, calls = counted(student_sampler(student, nfe))
        assert images_of(sampler).shape == (6, 8, 8, 1) and calls == [6] * nfe
    assert [row["nfe"] for row in rows(out / "metrics.jsonl")] == [3, 1, 3, 1]  # 1 warmed up
    card = (out / "README.md").read_text()
    assert "# A sampler of 1 or 3 network calls" in card and "num_inference_steps=3" in card
    assert "choose one with --nfe" in refusal("sample", out, "--out", tmp_path / "images")
    told = refusal("sample", out, "--nfe", 2, "--out", tmp_path / "images")
    assert "trained for 1, 3 calls, not 2" in told
    described = json.loads(hsivi("info", out, "--json").stdout)
    assert described["calls"] == "1, 3" and len(described["times at 3 calls"].split(",")) == 4


def test_with_a_turn_each_budgets_train_as_their_rounds_say(teacher, tmp_path):
    # two budgets of the same chain are one budget: a told fake score aside, rounds know no turns
    loaded = load_teacher(str(teacher))
    config = TrainConfig(nfe="2", batch_size=4, fake_updates=1, fake_warmup=1, steps=3)
    found = []
    for count in (1, 2):
        chains = [make_chain(config, 2, loaded)] * count
        networks = networks_of(config, loaded, chains)
        measured = [distill.play_round(networks, config, round_) for round_ in range(4)]
        found.append((measured, list(networks.student.state_dict().values())))
    assert found[0][0] == found[1][0]
    assert all(map(torch.equal, found[0][1], found[1][1]))


def test_several_budgets_are_judged_each_and_kept_by_their_geometric_mean(teacher, tmp_path):
    save_detector(tmp_path / "detector")
    train(teacher, tmp_path / "start", "--nfe", "1,2", "--steps", 0)
    near = tmp_path / "near.npz"
    hsivi("sample", tmp_path / "start", "--nfe", 2, "--count", 40, "--out", near)
    out = tmp_path / "run"
    judged = ("--reference", near, "--detector", tmp_path / "detector", "--eval-every", 2)
    judged += ("--eval-count", 40, "--student-rate", 1e-2, "--steps", 6, "--nfe", "1,2")
    result = train(teacher, out, *judged)
    told = rows(out / "evaluations.jsonl")
    assert [(row["step"], row["nfe"]) for row in told] == [
        (s, k) for s in (0, 2, 4, 6) for k in (1, 2)
    ]
    means = {s: (told[s]["distance"] * told[s + 1]["distance"]) ** 0.5 for s in (0, 2, 4, 6)}
    best = load_student(out).info["best"]
    assert best["step"] == min(means, key=means.get)
    assert best["distance"] == pytest.approx(means[best["step"]], rel=1e-12)
    own = [row["distance"] for row in told if row["step"] == best["step"]]
    assert best["distances"] == {"1": own[0], "2": own[1]}
    words = f"{own[0]:.2f} at 1 call, {own[1]:.2f} at 2 calls"
    assert words in (out / "README.md").read_text() and words in result.stderr
    assert {p.name for p in (out / "eval").iterdir()} == {
        f"{when}-{k}.png"
        for when in ("start", "step-000002", "step-000004", "step-000006")
        for k in (1, 2)
    }


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--grid 0,300,650", "--grid 0,300,650"),
        ("--noise-share 0.5,1", "--noise-share 0.5,1"),
        ("--log-scale layer --noise-share 0.5", "--log-scale layer"),
    ],
)
def test_what_is_one_budgets_own_is_refused_for_several(teacher, tmp_path, options, told):
    several = ("--nfe", "1,2", *options.split())
    line = refusal("train", teacher, "--out", tmp_path / "x", *QUICK, *several)
    assert told in line and "1,2" in line and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("", False),
        ("--nfe 1,2", True),
        ("--levels above", True),
        ("--levels above --nfe 1", False),
        ("--fake-score told", True),
        ("--nfe 1,2 --fake-score shared", False),
    ],
)
def test_a_fake_score_is_told_its_layer_where_levels_are_shared(teacher, tmp_path, options, told):
    train(teacher, tmp_path / "run", *options.split())
    tensors, _ = checkpoint.load_checkpoint(tmp_path / "run" / "checkpoint")
    own = "fake_score.class_embedding.weight"
    assert (own in tensors) == told
    if told:  # a row for every layer of every budget; the rounds' layers have moved theirs
        rows_ = tensors[own]
        assert len(rows_) == (3 if "1,2" in options else 2) and rows_.any(1).all()
    assert not any(
        "class_embedding" in n for n in load_student(tmp_path / "run").model.unet.state_dict()
    )


def test_classes_and_layers_are_told_together(save_teacher, tmp_path):
    other = save_teacher(num_class_embeds=3, in_channels=3, out_channels=3, **TINY)
    train(other, tmp_path / "run", "--nfe", "1,2", "--steps", 4)
    tensors, _ = checkpoint.load_checkpoint(tmp_path / "run" / "checkpoint")
    assert len(tensors["fake_score.class_embedding.weight"]) == 9
    student = load_student(tmp_path / "run")
    assert student.model.label_count == 3
    assert images_of(student_sampler(student, 2)).shape == (6, 8, 8, 3)


def test_a_student_of_several_budgets_begins_with_another_runs(teacher, tmp_path):
    train(teacher, tmp_path / "one", "--nfe", 3)
    options = ("--nfe", "1,2", "--init", tmp_path / "one", "--steps", 0)
    train(teacher, tmp_path / "several", *options)
    one, several = load_student(tmp_path / "one"), load_student(tmp_path / "several")
    assert several.model.digest == one.model.digest
    ours, theirs = (
        checkpoint.load_checkpoint(tmp_path / n / "checkpoint")[0] for n in ("several", "one")
    )
    fake = {name for name in theirs if name.startswith("fake_score.")}
    assert fake and all(torch.equal(ours[name], theirs[name]) for name in fake)
    assert not ours["fake_score.class_embedding.weight"].any()


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_teachers_of_other_predictions_train(save_teacher, tmp_path, prediction):
    scheduler = diffusers.DDPMScheduler(prediction_type=prediction)
    train(save_teacher(scheduler=scheduler, **TINY), tmp_path / "run", "--regress-steps", 2)
    student = load_student(tmp_path / "run")
    assert student.model.prediction == prediction
    assert all(map(finite, rows(tmp_path / "run" / "metrics.jsonl")))


def test_a_class_conditional_colour_teacher_trains(save_teacher, tmp_path):
    other = save_teacher(num_class_embeds=3, in_channels=3, out_channels=3, **TINY)
    train(other, tmp_path / "run", "--regress-steps", 2)
    sampler = student_sampler(load_student(tmp_path / "run"))
    assert sampler.label_count == 3 and images_of(sampler).shape == (6, 8, 8, 3)


def test_a_teacher_of_two_channels_trains_is_judged_and_has_no_pictures(save_teacher, tmp_path):
    folder, out = save_teacher(in_channels=2, out_channels=2, **TINY), tmp_path / "run"
    save_detector(tmp_path / "detector", channels=2)
    real = torch.randint(256, (9, 8, 8, 2), dtype=torch.uint8)
    save_npz(real, tmp_path / "real.npz")
    judged = ("--reference", tmp_path / "real.npz", "--detector", tmp_path / "detector")
    train(folder, out, *judged, "--eval-count", 9)
    assert load_student(out).info["best"]["count"] == 9 and not (out / "eval").exists()
    told = refusal("sample", out, "--out", tmp_path / "pictures", "--device", "cpu")
    assert "--out FILE.npz" in told and not (tmp_path / "pictures").exists()
    hsivi("sample", out, "--count", 9, "--out", tmp_path / "s.npz", "--device", "cpu")
    pair = (tmp_path / "s.npz", tmp_path / "real.npz", "--detector", tmp_path / "detector")
    assert json.loads(hsivi("fid", *pair, "--json").stdout)["fid"] > 0


def test_a_batch_in_parts_trains_like_a_whole_one(teacher, tmp_path):
    train(teacher, tmp_path / "whole", "--regress-steps", 2)
    train(teacher, tmp_path / "parts", "--regress-steps", 2, "--accumulate", 3)
    pairs = zip(
        rows(tmp_path / "whole/metrics.jsonl"), rows(tmp_path / "parts/metrics.jsonl"), strict=True
    )
    for one, split in pairs:  # sums in another order, and Adam's first steps magnify rounding
        assert split == pytest.approx(one, rel=1e-3)


def test_bfloat16_is_used_where_it_is_asked_for(teacher, tmp_path):
    train(teacher, tmp_path / "exact")
    train(teacher, tmp_path / "low", "--dtype", "bfloat16")
    exact, low = (rows(tmp_path / n / "metrics.jsonl")[0] for n in ("exact", "low"))
    assert low != exact and low["fake_loss"] == pytest.approx(exact["fake_loss"], rel=0.05)


def test_an_automatic_precision_is_float32_on_a_cpu_and_goes_on_as_such(teacher, tmp_path):
    train(teacher, tmp_path / "exact")
    train(teacher, tmp_path / "auto", "--dtype", "auto", "--minutes", 1e-9)
    assert json.loads((tmp_path / "auto/hsivi.json").read_text())["config"]["dtype"] == "float32"
    train(teacher, tmp_path / "auto", "--dtype", "float32")
    exact, auto = (rows(tmp_path / name / "metrics.jsonl") for name in ("exact", "auto"))
    assert auto == exact


def test_a_run_begins_with_another_runs_student(teacher, save_teacher, tmp_path):
    scaled = ("--objective", "score-matching", "--noise-share", "0.5", "--log-scale", "pixel")
    train(teacher, tmp_path / "many", "--nfe", 3, *scaled)
    train(teacher, tmp_path / "few", "--nfe", 2, "--init", tmp_path / "many", "--steps", 0, *scaled)
    many, few = load_student(tmp_path / "many"), load_student(tmp_path / "few")
    assert few.model.digest == many.model.digest != load_teacher(str(teacher)).digest
    assert torch.equal(few.log_scales[2], many.log_scales[3]) and few.log_scales[2].any()
    ours, theirs = (
        checkpoint.load_checkpoint(tmp_path / n / "checkpoint")[0] for n in ("few", "many")
    )
    names = [name for name in ours if name.startswith("fake_score.")]
    assert names and all(torch.equal(ours[name], theirs[name]) for name in names)
    other = save_teacher(seed=5, **TINY)
    told = refusal("train", other, "--out", tmp_path / "x", *QUICK, "--init", tmp_path / "many")
    assert "another teacher" in told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--noise-share two", "--noise-share"),
        ("--noise-share 0.5,0.5,0.5", "3 numbers"),
        ("--noise-share 1.5", "[0, 1]"),
        ("--noise-share nan", "[0, 1]"),
        ("--noise-share eta:nan", "[0, 1]"),
        ("--start edm --noise-share 0", "no solver 'edm'"),
        ("--start heun --noise-share 0 --nfe 3", "heun"),
        ("--start deis", "--noise-share below 1"),
        ("--log-scale pixel", "frozen"),
        ("--levels own --noise-share 0", "--levels own"),
        ("--regress-steps 5 --noise-share 0.9", "--noise-share 1"),
        ("--regress-steps -1", "--regress-steps"),
        ("--regress-rate 0", "--regress-rate"),
        ("--grid 0,300", "2"),
        ("--nfe 0", "--nfe 0"),
        ("--minutes 0", "--minutes"),
        ("--init nowhere", "nowhere"),
        ("--reference nowhere.npz", "nowhere.npz"),
        ("--device nodevice", "--device nodevice"),
    ],
)
def test_settings_that_mean_nothing_are_refused_before_anything_is_written(
    teacher, tmp_path, options, told
):
    assert told in refusal("train", teacher, "--out", tmp_path / "x", *QUICK, *options.split())
    assert not (tmp_path / "x").exists()


def test_a_tracker_that_is_not_installed_is_named(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module.importlib.util, "find_spec", lambda name: None)
    told = refusal("train", teacher, "--out", tmp_path / "x", *QUICK, "--log-with", "wandb")
    assert "wandb" in told and "pip install" in told


def test_the_regressed_student_is_judged_and_kept_if_nothing_betters_it(
    teacher, tmp_path, monkeypatch
):
    distances = iter((9.0, 8.0, 8.5))  # of the start, the regressed student, and the last
    monkeypatch.setattr(evaluation, "frechet_distance", lambda *a: next(distances))
    save_detector(tmp_path / "detector")
    out, options = tmp_path / "x", ("--regress-steps", 2, "--detector", tmp_path / "detector")
    hsivi("sample", teacher, "--solver", "ddim", "--nfe", 3, "--count", 16, "--out", tmp_path / "r")
    judged = (*options, "--reference", tmp_path / "r", "--eval-count", 16)
    train(teacher, out, *judged, "--steps", 0)
    assert [row["round"] for row in rows(out / "evaluations.jsonl")] == [0, 1]
    untrained, regressed = load_teacher(str(teacher)).unet, load_student(out).model.unet
    assert any(
        not torch.equal(a, b)
        for a, b in zip(untrained.parameters(), regressed.parameters(), strict=True)
    )
    train(teacher, out, *judged, "--steps", 2)  # goes on from there, and forgets no evaluation
    assert [row["step"] for row in rows(out / "evaluations.jsonl")] == [0, 0, 2]
    best = load_student(out).info["best"]
    assert (best["step"], best["round"], best["start"]["distance"]) == (0, 1, 9.0)


# ---- several processes ---------------------------------------------------------------------------


@pytest.mark.slow  # two processes that each load torch
def test_two_processes_train_like_one(teacher, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    train(teacher, one, "--steps", 3)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    command += ["--redirects", 3, "--log-dir", tmp_path / "logs"]
    command += ["-m", "hsivi_cli", "train", teacher, "--out", two, *QUICK, "--steps", 3]
    save_detector(tmp_path / "detector")  # one of the two judges, and neither waits for ever
    save_npz(torch.randint(256, (9, 8, 8, 1), dtype=torch.uint8), tmp_path / "real.npz")
    command += ["--reference", tmp_path / "real.npz", "--detector", tmp_path / "detector"]
    command += ["--eval-every", 1, "--eval-count", 9]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "logs").rglob("stderr.log"))) == 2
    told, expected = (rows(out / "metrics.jsonl") for out in (two, one))
    assert len(told) == 3
    for ours, theirs in zip(told, expected, strict=True):  # as for a batch in parts
        assert ours == pytest.approx(theirs, rel=1e-3)
    ours, theirs = (load_checkpoint(out / "checkpoint")[0] for out in (two, one))
    for name in ours:  # rate 1e-3: an update of uncertain sign moves a weight by that much
        assert not name.startswith("ema.") or (ours[name] - theirs[name]).abs().max() < 3e-3
    assert len(rows(two / "evaluations.jsonl")) == 3
    assert json.loads((two / "hsivi.json").read_text())["step"] == 3
