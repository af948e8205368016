"""What options are: fields of frozen dataclasses, their bounds, and what several verbs say alike.

A field's `help` is its command-line help: cli.py makes the options from these classes, so an
option, its default and its explanation stand here and nowhere else. Nothing in this folder imports
torch, so that `hsivi --help` is instant, or opens a file.
"""

from __future__ import annotations

import math
from dataclasses import field, fields

from ..errors import HsiviError

# what several verbs say alike
DEVICE = "cuda, cuda:1, cpu, ...; the default is CUDA where there is one"
DETECTOR = "feature network: inception, fashion-mnist or a folder; default: "
DETECTOR_WEIGHTS = "weights file of the Inception network"
DATA_ROOT = "where torchvision's data sets lie"
DATA_HERE = DATA_ROOT + "; default: data"
MINUTES = "stop after this long, saved and ready to resume"
SEED = "decides everything random"
EMA_RAMP = "ramped up as (1 + step) / (10 + step)"
JOINT = "train all layers together, or one after another from the "
REVISION = "a hub teacher's revision, for example one with EMA weights"
VARIANT = "a teacher's weights variant, such as fp16 or ema"
SUBFOLDER = "a folder within the teacher's"
DTYPES = ("float32", "bfloat16")
ORIGIN = ("revision", "variant", "subfolder")  # of a teacher: which of what lies at its name
RATES = 1e6  # learning rates lie below; Adam's arithmetic ends at some 1e38
SEEDS = 2**62  # seeds of images lie below: generators take 64 bits, and counts come on top


def option(default, help: str, **extra):
    """A dataclass field that cli.py turns into a command-line option.

    Of extra, `choices` are the values there are, and `least`, `above` and `below` bound a number.
    """
    return field(default=default, metadata={"help": help, **extra})


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def check_options(config) -> None:
    """Refuse values that mean nothing: a choice that there is not, numbers outside the bounds of
    their options, NaN or infinite.
    """
    for item in fields(config):
        value, bounds = getattr(config, item.name), item.metadata
        if value not in (item.default, *bounds.get("choices", (value,))):
            there = ", ".join(bounds["choices"])
            raise HsiviError(f"{flag_of(item.name)} {value} is none of {there}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not math.isfinite(value):
            wrong = "must be a finite number"
        elif value < bounds.get("least", value):
            wrong = f"must be at least {bounds['least']}"
        elif "above" in bounds and value <= bounds["above"]:
            wrong = f"must be above {bounds['above']}"
        elif "below" in bounds and value >= bounds["below"]:
            wrong = f"must be below {bounds['below']}"
        else:
            continue
        raise HsiviError(f"{flag_of(item.name)} {value} {wrong}")


def parse_numbers(text: str, flag: str, least: int = 1) -> list[int]:
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) >= least for word in words):
        raise HsiviError(
            f"{flag} {text} must be whole numbers from {least} up, separated by commas"
        )
    return [int(word) for word in words]
