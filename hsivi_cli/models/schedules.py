"""Noise schedules as diffusers' scheduler_config.json tells them, of now and of earlier versions.

What a file leaves out is what the class that it names would take. Steps and spacings of its solver
are of no interest: a schedule is the betas by time, what the network predicts, and how x0 is kept
in range.
"""

from __future__ import annotations

import inspect
import math
import sys
from pathlib import Path

import diffusers
from diffusers import DDPMScheduler
from torch import Tensor

from ..errors import HsiviError, reason_of
from ..files.whole import read_json
from ..method import schedule

SCHEDULERS = tuple(
    f"{name}Scheduler"
    for name in (
        "DDPM", "DDPMParallel", "DDIM", "DDIMParallel", "PNDM", "IPNDM", "LCM",
        "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep",
        "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete",
        "KDPM2Discrete", "KDPM2AncestralDiscrete",
    )
)  # fmt: skip
OWN_LEVELS = "IPNDMScheduler"  # takes no betas, and its trained_betas are noise levels
# what makes betas
BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
# settings with which a network is told other times than 0..T-1, or predicts other things
FOREIGN = {
    "use_flow_sigmas": (None, False),
    "timestep_type": (None, "discrete"),
    "timestep_values": (None,),
}
MOST_TIMES = 1_000_000
END = 0.01  # of alpha_bar: above it, the last level still shows an image


def load_schedule(file: Path, name: str) -> tuple[DDPMScheduler, Tensor]:
    """The schedule of a scheduler_config.json as a DDPMScheduler, and its table of alpha_bar."""
    config = read_json(file)
    kind = kind_of(config)
    if kind not in SCHEDULERS:
        raise HsiviError(
            f"{name} has a {kind}; only variance-preserving discrete schedules (DDPM, DDIM and "
            "their solvers) are supported"
        )
    for key, plain in FOREIGN.items():
        if config.get(key) not in plain:
            raise HsiviError(
                f"{name} has a schedule with {key} {config[key]!r} ({file}), whose network is told "
                "other times than a variance-preserving discrete schedule's; such are not supported"
            )
    settings = settings_of(config, file)
    prediction = settings["prediction_type"]
    if prediction not in schedule.PREDICTIONS:
        raise HsiviError(
            f"{name} predicts {prediction!r}; supported are {', '.join(schedule.PREDICTIONS)}"
        )
    known = {key: settings[key] for key in BETAS if key in settings}
    check_betas(known, kind, file)
    try:
        scheduler = DDPMScheduler(**known, prediction_type=prediction, clip_sample=False)
    except Exception as error:  # of foreign settings the constructor may make anything
        reason = " ".join(reason_of(error).split())[:200]
        raise HsiviError(f"{file} describes no schedule: {reason}") from error
    table = scheduler.alphas_cumprod.double()
    if not (table.diff() <= 0).all() or not (0 <= table[-1] <= table[0] < 1):
        raise HsiviError(
            f"{file} describes no schedule: betas lie in (0, 1), and alpha_bar falls from below 1"
        )
    # cosine betas end at 2e-9
    if settings.get("rescale_betas_zero_snr") or table[-1] < 1e-12:
        raise HsiviError(
            f"{name} has a schedule with zero terminal SNR, where eps says nothing about x0; such "
            "teachers are not supported"
        )
    return scheduler, table


def kind_of(config: dict) -> str:
    """The scheduler's class that a configuration names."""
    return config.get("_class_name", "DDPMScheduler")


def settings_of(config: dict, file: Path | str) -> dict:
    """Every setting of a scheduler's configuration by its name of today: what it says, over the
    defaults of the class that it names.
    """
    parameters = inspect.signature(getattr(diffusers, kind_of(config)).__init__).parameters
    settings = {key: value.default for key, value in parameters.items() if key != "self"}
    settings = {"prediction_type": "epsilon"} | settings
    renamed = {}  # by earlier versions' names
    if (count := config.get("timesteps")) is not None:
        renamed["num_train_timesteps"] = count
    if (epsilon := config.get("predict_epsilon")) is not None:
        if not isinstance(epsilon, bool):
            raise HsiviError(f"{file} has predict_epsilon {epsilon!r}, and true or false is wanted")
        renamed["prediction_type"] = "epsilon" if epsilon else "sample"
    for key, value in renamed.items():
        if config.get(key, value) not in (value, None):
            raise HsiviError(
                f"{file} says two things: {key} {config[key]}, and by an earlier version's word "
                f"{value}; leave one of them out"
            )
    return settings | config | renamed


def check_betas(known: dict, kind: str, file: Path) -> None:
    """Refuse betas that no schedule can be made of, and those that are told nowhere."""
    count, betas = known["num_train_timesteps"], known.get("trained_betas")
    if kind == OWN_LEVELS and (betas or not {"beta_start", "beta_end"} <= known.keys()):
        raise HsiviError(
            f"{file} names {kind}, which has no betas: write into it those that the network was "
            'trained with, such as "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": '
            '"linear"'
        )
    if type(count) is not int or not 1 <= count <= MOST_TIMES:
        raise HsiviError(
            f"{file} describes no schedule: num_train_timesteps is a whole number up to "
            f"{MOST_TIMES:,}, not {count!r}"
        )
    if betas is None:
        return
    if not isinstance(betas, list) or not all(type(beta) in (int, float) for beta in betas):
        raise HsiviError(f"{file} describes no schedule: trained_betas is a list of numbers")
    if len(betas) != count:
        raise HsiviError(
            f"{file} describes no schedule: {len(betas)} trained_betas for {count} times; set "
            f"num_train_timesteps to {len(betas)} if they are all"
        )


def unlike_noise(table: Tensor, name: str) -> str | None:
    """A warning where a schedule's last level is not noise alone."""
    end = table[-1].item()
    if end <= END:
        return None
    return (
        f"warning: the schedule of {name} does not end in noise: alpha_bar is {end:.3g} at its "
        f"last time, {len(table) - 1}, and should be below {END:g}; what is drawn from pure noise "
        "may be poor"
    )


def clip_of(config: dict, file: Path | str) -> schedule.Clip | None:
    """What the pipeline of a scheduler_config.json does to x0: clamping, as DDPM's and DDIM's do
    unless they are told not to, or dynamic thresholding, which is off unless asked for.
    """
    settings = settings_of(config, file)
    for key in ("thresholding", "clip_sample"):
        if settings.get(key) not in (None, False, True):
            raise HsiviError(
                f"{file} describes no clipping of x0: {key} is true or false, not {settings[key]!r}"
            )
    if settings.get("thresholding"):
        reach = number_in(settings, "sample_max_value", 1.0, file)
        quantile = number_in(settings, "dynamic_thresholding_ratio", 0.995, file, most=1.0)
        return schedule.Clip(reach, quantile)
    if settings.get("clip_sample"):
        return schedule.Clip(number_in(settings, "clip_sample_range", 1.0, file))
    return None


def number_in(
    settings: dict, key: str, default: float, file: Path | str, most: float = math.inf
) -> float:
    """A setting of clipping, above 0 and at most so much."""
    value = settings.get(key, default)
    if type(value) not in (int, float) or not 0 < value <= min(most, sys.float_info.max):
        raise HsiviError(
            f"{file} describes no clipping of x0: {key} is a number above 0"
            f"{f' and at most {most:g}' if most < math.inf else ''}, not {value!r}"
        )
    return float(value)
