"""A training's length from --minutes."""

import time

import pytest
from command import QUICK, TINY, hsivi, refusal, rows

from hsivi_cli.config import FOLLOWS, TrainConfig
from hsivi_cli.metrics.planned import Length, with_length
from hsivi_cli.models.student import load_student

# QUICK without its --steps
OPTIONS = [
    word
    for pair in zip(QUICK[::2], QUICK[1::2], strict=True)
    if pair[0] != "--steps"
    for word in pair
]


@pytest.fixture
def teacher(save_teacher):
    return save_teacher(**TINY)


def test_minutes_without_steps_hold_a_whole_schedule_which_a_resumed_run_keeps(teacher, tmp_path):
    out, begin = tmp_path / "run", time.monotonic()
    command = ("train", teacher, "--out", out, *OPTIONS)
    told = hsivi(*command, "--minutes", 0.12).stderr
    took, steps = time.monotonic() - begin, load_student(out).info["config"]["steps"]
    assert f"--minutes 0.12: {steps} steps fit" in told and steps > 0
    if "stopped and saved" in told:  # something else took the machine's time
        hsivi(*command, "--minutes", 5)
    else:
        assert took < 0.12 * 60 + 2
    assert load_student(out).info["step"] == steps == rows(out / "metrics.jsonl")[-1]["step"]
    assert load_student(out).info["config"]["steps"] == steps


def test_steps_that_are_named_are_not_planned(teacher, tmp_path):
    hsivi("train", teacher, "--out", tmp_path / "x", *QUICK, "--minutes", 5)
    assert load_student(tmp_path / "x").info["config"]["steps"] == 2


def test_minutes_too_few_for_a_step_say_how_many_it_takes(teacher, tmp_path):
    told = refusal("train", teacher, "--out", tmp_path / "x", *OPTIONS, "--minutes", 1e-3)
    assert "--minutes 0.001 are too few for a step and its evaluations here: give 0." in told
    assert not (tmp_path / "x").exists()


def test_minutes_cut_a_regression_short_that_does_not_fit_and_lay_its_rate_into_them(
    teacher, tmp_path
):
    """At one call there is nothing but regression, of 6,000 updates."""
    command = ("train", teacher, "--nfe", 1, "--batch-size", 2, "--minutes", 0.2, "--eval-count", 8)
    told = hsivi(*command, "--out", tmp_path / "one").stderr
    made = load_student(tmp_path / "one").info
    fit = made["config"]["regress_steps"]
    assert 64 <= fit < 6000 and fit % 64 == 0 and made["config"]["steps"] == 0
    assert f"--minutes 0.2: {fit} updates of regression fit" in told
    if "stopped and saved" in told:  # something else took the machine's time
        hsivi(*command, "--out", tmp_path / "one", "--minutes", 5)
        made = load_student(tmp_path / "one").info
    assert made["regressed"] == fit


def test_a_regression_that_is_named_is_not_cut_but_takes_several_sittings(teacher, tmp_path):
    command = ("train", teacher, "--nfe", 1, "--minutes", 0.02, "--eval-count", 8)
    told = hsivi(*command, "--regress-steps", 5000, "--out", tmp_path / "x").stderr
    assert "of 5000 updates of regression" in told and "fit" not in told
    assert load_student(tmp_path / "x").info["config"]["regress_steps"] == 5000


def test_the_rate_goes_with_the_steps_that_are_planned_where_it_is_not_named():
    config = TrainConfig(nfe="4", minutes=1, student_rate=1e-5)
    for steps, rate in ((50, 4e-5), (100, 2e-5), (4000, 1e-5)):
        fit = Length(steps, regress_steps=0, minutes=0.5)
        assert with_length(config, {"steps", FOLLOWS}, fit).student_rate == rate
        named = with_length(config, {"steps"}, fit)
        assert (named.steps, named.student_rate) == (steps, 1e-5)


def test_minutes_that_end_in_the_search_for_a_start_say_so_then(teacher, tmp_path):
    told = refusal("train", teacher, "--nfe", 4, "--out", tmp_path / "x", "--minutes", 1e-3)
    assert "--minutes 0.001 are over before a start is found" in told and "--start" in told
    assert not (tmp_path / "x").exists()
