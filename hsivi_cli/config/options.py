"""What options are: fields of frozen dataclasses, their bounds, and what several verbs say alike.

A field's `help` is its command-line help: cli.py makes the options from these classes, so an
option, its default and its explanation stand here and nowhere else. Nothing in this folder imports
torch, so that `hsivi --help` is instant, or opens a file.
"""

from __future__ import annotations

import math
import typing
from dataclasses import Field, dataclass, field, fields

from ..errors import HsiviError

# what several verbs say alike
DEVICE = "cuda, cuda:1, cpu, ...; default: CUDA where there is one"
DETECTOR = "feature network: inception, fashion-mnist or a folder; default: "
DETECTOR_WEIGHTS = "weights file of the Inception network"
DATA_ROOT = "where torchvision's data sets lie"
DATA_HERE = DATA_ROOT + "; default: data"
REVISION = "a hub teacher's revision, for example one with EMA weights"
VARIANT = "a teacher's weights variant, such as fp16 or ema"
FORCE = "write over a named file that is not one of hsivi's own"
SUBFOLDER = "a folder within the teacher's"
CLIPS = ("auto", "on", "off")
DTYPES = ("float32", "bfloat16")
ORIGIN = ("revision", "variant", "subfolder")  # of a teacher: which of what lies at its name
RATES = 1e6  # learning rates lie below; Adam's arithmetic ends at some 1e38
CALLS = 100_000  # numbers of network calls lie below: no schedule has as many times
COUNTS = 10**8  # all that is counted otherwise: images, steps, samples
SCALE = {"above": 1e-6, "below": 1e6}  # where float32 has room to square and exponentiate
SEEDS = 2**62  # seeds of images lie below: generators take 64 bits, and counts come on top


def option(default, help: str, **extra):
    """A dataclass field that cli.py turns into a command-line option.

    Of extra, `choices` are the values there are, `least`, `above` and `below` bound a number, and
    `word` is what may stand in its place.
    """
    return field(default=default, metadata={"help": help, **extra})


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def option_fields(config: type) -> list[Field]:
    """The fields of a configuration that are options; its own before those that it inherits."""
    inherited = {item.name for item in fields(config.__base__)}
    found = [item for item in fields(config) if "help" in item.metadata]
    return sorted(found, key=lambda item: item.name in inherited)


def option_like(config: type, name: str, default):
    """An option that another configuration has, with a default of its own."""
    (like,) = (item for item in fields(config) if item.name == name)
    return field(default=default, metadata=like.metadata)


@dataclass(frozen=True)
class Options:
    """A verb's configuration. Refuses values that mean nothing: a choice that there is not, numbers
    outside the bounds of their options, NaN or infinite.
    """

    def __post_init__(self):
        for item in fields(self):
            if wrong := fault(getattr(self, item.name), item.default, item.metadata):
                raise HsiviError(f"{flag_of(item.name)} {getattr(self, item.name)} {wrong}")


def fault(value, default, bounds) -> str | None:
    """What is wrong with an option's value, in words, or None.

    bounds  what `option` was given beside the default
    """
    if value not in (default, *bounds.get("choices", (value,))):
        return f"is none of {', '.join(bounds['choices'])}"
    if isinstance(value, bool) and not isinstance(default, bool):  # of a file: to Python it is 1
        return "is none of the values of this option"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):  # it takes no int beyond floats
        return "must be a finite number"
    if value < bounds.get("least", value):
        return f"must be at least {bounds['least']}"
    if "above" in bounds and value <= bounds["above"]:
        return f"must be above {bounds['above']}"
    if "below" in bounds and value >= bounds["below"]:
        return f"must be below {bounds['below']}"
    return None


def are_settings(stored: object, config: type) -> bool:
    """Whether what a file holds are values of the kinds that a configuration's options have."""
    hints = typing.get_type_hints(config)
    known = {item.name for item in fields(config)}

    def fits(name: str, value: object) -> bool:
        kinds = typing.get_args(hints[name]) or (hints[name],)
        return type(value) in kinds or (type(value) is int and float in kinds)

    kept = isinstance(stored, dict) and stored.keys() <= known
    return kept and all(fits(name, value) for name, value in stored.items())


def is_whole(word: str, least: int, below: int) -> bool:
    """Whether a text is a whole number in these bounds, of which Python reads no more than 4,300
    digits.
    """
    return word.strip().isdecimal() and len(word) < 4300 and least <= int(word) < below


def parse_numbers(text: str, flag: str, least: int = 1) -> list[int]:
    """Numbers of network calls."""
    words = text.split(",")
    if not all(is_whole(word, least, CALLS) for word in words):
        raise HsiviError(
            f"{flag} {text:.80} must be whole numbers from {least} up and below {CALLS}, "
            "separated by commas"
        )
    return [int(word) for word in words]
