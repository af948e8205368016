"""Schedules as scheduler_config.json files of many classes and years tell them."""

import json

import diffusers
import pytest
import torch
from conftest import edit_json
from diffusers import DDPMScheduler

from hsivi_cli.errors import HsiviError
from hsivi_cli.models.loading import load_teacher, read_teacher
from hsivi_cli.models.schedules import SCHEDULERS, clip_of, load_schedule, unlike_noise


@pytest.fixture
def file(tmp_path):
    """A function (**config) -> a scheduler_config.json with these entries alone."""

    def write(**config):
        path = tmp_path / "scheduler_config.json"
        path.write_text(json.dumps(config))
        return path

    return write


def table_of(file):
    return load_schedule(file, "it")[1]


def refused(file):
    """The one line that the user reads."""
    with pytest.raises(HsiviError) as caught:
        load_schedule(file, "it")
    line = str(caught.value)
    assert "\n" not in line and len(line) < 400
    return line


@pytest.mark.parametrize("kind", sorted(set(SCHEDULERS) - {"IPNDMScheduler"}))
def test_what_a_file_leaves_out_is_its_own_class_default(file, kind):
    own = getattr(diffusers, kind)()
    assert torch.equal(table_of(file(_class_name=kind)), own.alphas_cumprod.double())


@pytest.mark.parametrize("kind", sorted(set(SCHEDULERS) - {"IPNDMScheduler"}))
def test_every_class_is_read_with_the_betas_that_it_is_given(file, kind):
    own = getattr(diffusers, kind)(beta_start=2e-4, beta_end=0.03, num_train_timesteps=500)
    path = file(**own.config, _class_name=kind)
    assert torch.equal(table_of(path), own.alphas_cumprod.double())


def test_an_ipndm_is_read_where_it_tells_betas_and_else_says_what_to_write(file):
    told = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    found = table_of(file(_class_name="IPNDMScheduler", **told))
    assert torch.equal(found, DDPMScheduler().alphas_cumprod.double())
    for config in ({}, {"trained_betas": [0.1] * 1000}):  # which are levels there, not betas
        assert '"beta_start": 0.0001' in refused(file(_class_name="IPNDMScheduler", **config))


@pytest.mark.parametrize(("word", "prediction"), [(False, "sample"), (True, "epsilon")])
def test_predict_epsilon_of_earlier_versions_is_heeded(file, word, prediction):
    scheduler, _ = load_schedule(file(predict_epsilon=word), "it")
    assert scheduler.config.prediction_type == prediction
    scheduler, _ = load_schedule(file(predict_epsilon=word, prediction_type=prediction), "it")
    assert scheduler.config.prediction_type == prediction
    path = file(predict_epsilon=word, prediction_type="v_prediction")
    assert "says two things: prediction_type v_prediction" in refused(path)


def test_timesteps_of_earlier_versions_are_the_number_of_times(file):
    assert len(table_of(file(timesteps=2000, beta_end=0.01))) == 2000
    assert "says two things: num_train_timesteps 1000" in refused(
        file(timesteps=2000, num_train_timesteps=1000)
    )


@pytest.mark.parametrize(
    "setting",
    [{"timestep_type": "continuous"}, {"use_flow_sigmas": True}, {"timestep_values": [1, 2]}],
)
def test_networks_that_are_told_other_times_are_refused_by_the_setting(file, setting):
    path = file(_class_name="EulerDiscreteScheduler", **setting)
    ((key, value),) = setting.items()
    assert f"has a schedule with {key} {value!r}" in refused(path)
    for plain in (None, {"timestep_type": "discrete"}.get(key)):
        table_of(file(_class_name="EulerDiscreteScheduler", **{key: plain}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"trained_betas": 0.5},
        {"trained_betas": [0.1, "0.2"]},
        {"trained_betas": [[0.1, 0.2]], "num_train_timesteps": 1},
        {"trained_betas": [0.1, 0.2]},
        {"num_train_timesteps": 10**12},
        {"num_train_timesteps": True},
        {"num_train_timesteps": 1e3},
        {"beta_schedule": ["linear"]},
        {"beta_start": None},
        {"beta_end": 2**64},
        {"beta_end": 10**400},
    ],
)
def test_betas_that_make_no_schedule_are_one_line(file, wrong):
    assert "describes no schedule" in refused(file(**wrong))


def test_a_schedule_that_does_not_end_in_noise_is_told_with_its_number(save_teacher, capfd):
    short = DDPMScheduler(200)  # the betas of 1000 times over 200
    folder = save_teacher(scheduler=short)
    load_teacher(str(folder))
    end = f"{short.alphas_cumprod[-1].item():.3g}"
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: ") and end in line and "199" in line
    read_teacher(str(folder))  # a student's own
    edit_json(folder / "scheduler" / "scheduler_config.json", num_train_timesteps=1000)
    load_teacher(str(folder))
    assert capfd.readouterr().err == ""


def test_the_schedules_of_the_solvers_defaults_end_in_noise():
    for kind in set(SCHEDULERS) - {"IPNDMScheduler"}:
        table = getattr(diffusers, kind)().alphas_cumprod
        assert unlike_noise(table, kind) is None, kind


@pytest.mark.parametrize(
    "wrong",
    [
        {"clip_sample": "no"},
        {"thresholding": 1000},
        {"clip_sample_range": False},
        {"clip_sample_range": 0},
        {"clip_sample_range": 10**400},
        {"thresholding": True, "dynamic_thresholding_ratio": 1000},
        {"thresholding": True, "sample_max_value": float("nan")},
        {"predict_epsilon": "no"},
    ],
)
def test_settings_of_clipping_that_mean_nothing_are_refused_by_name(wrong):
    with pytest.raises(HsiviError, match=list(wrong)[-1]):
        clip_of(wrong, "x.json")
