"""Every option of every verb with values far out: each ends as it should, or in one line.

python -m pytest -m slow -s tests/test_extremes.py prints the table of docs/experiments/chaos.md.
"""

import contextlib
import typing
from collections import Counter

import click
import diffusers
import pytest
import torch
from click.testing import CliRunner
from command import QUICK, TINY, save_detector, train

from hsivi_cli.cli import main
from hsivi_cli.config import (
    BoostConfig,
    CompareConfig,
    FidConfig,
    InferConfig,
    SampleConfig,
    TrainConfig,
    option_fields,
)
from hsivi_cli.files.images import save_npz

pytestmark = pytest.mark.usefixtures("coarse_pictures")
CONFIGS = (TrainConfig, InferConfig, BoostConfig, SampleConfig, FidConfig, CompareConfig)
LONG = "9" * 5000  # more digits than Python reads
WIDE = "9" * 400  # Python reads it, and no float is as large
COUNTED = ("-1", "0", str(-(2**64)), str(2**64), WIDE, LONG)
MEASURED = (*COUNTED, "nan", "inf", "1e308", "-1e308", "1e-320", "1e-30", "1e30")
TEXTS = ("²", "-", ",", "0,1", "eta:nan", "eta:1e308", "1e308", "nan", str(2**64), WIDE, LONG)
BY_DEFAULT = {"-1", "nan", "1e308", "1e-320", "²", str(2**64), WIDE, LONG}  # most end at once
PATHS = {
    *("--out", "--grid", "--grids", "--json", "--html", "--plot", "--cache", "--save-stats"),
    *("--config", "--data-root", "--reference", "--detector", "--detector-weights", "--init"),
    *("--revision", "--variant", "--subfolder", "--predict"),
}


@pytest.fixture(scope="module")
def home(tiny_unet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("extremes")
    scheduler = diffusers.DDPMScheduler(prediction_type="sample")
    pipeline = diffusers.DDPMPipeline(unet=tiny_unet(**TINY), scheduler=scheduler)
    pipeline.save_pretrained(folder / "teacher")
    train(folder / "teacher", folder / "run", "--steps", 0)
    save_detector(folder / "detector")
    save_npz(torch.randint(256, (9, 8, 8, 1), dtype=torch.uint8), folder / "real.npz")
    rows = (f"{x},{x % 5}" for x in range(40))
    (folder / "table.csv").write_text("\n".join(["x,y", *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def tally():
    """Options tried, values, and those that ended in a line, by verb; printed in the end."""
    found = {verb: Counter() for verb in main.commands}
    yield found
    print("\n| verb | options | values | ended in a line | survived |\n|---|---|---|---|---|")
    for verb, counts in found.items() if any(found.values()) else ():
        cells = (verb, counts["options"], counts["values"], counts["refused"], counts["survived"])
        print(f"| {' | '.join(map(str, cells))} |")


def words_of(home, verb):
    """The smallest command of a verb; what is added comes after it and wins."""
    judged = ("--reference", home / "real.npz", "--detector", home / "detector")
    small = {
        "train": (home / "teacher", *QUICK, "--eval-count", 9, *judged),
        "sample": (home / "run", "--count", 2, "--device", "cpu"),
        "fid": (home / "real.npz", home / "real.npz", *judged[2:], "--device", "cpu"),
        "compare": (
            *(home / "run", *judged, "--count", 9, "--solvers", "ddim-quad", "--clip-x0", "off"),
            *("--tune-count", 2, "--device", "cpu", "--cache", home / "cache"),
        ),
        "infer": (
            *("banana", "--layers", 2, "--width", 8, "--depth", 1, "--batch-size", 8),
            *("--mixing", 8, "--path-steps", 1, "--steps", 1, "--count", 9, "--device", "cpu"),
        ),
        "boost": (
            *(home / "table.csv", "--target", "y", "--calls", 1, "--trees", 1, "--repeats", 2),
            *("--match", 0, "--min-rows", 2, "--held-out", 0.2, "--threads", 1),
        ),
        "info": (home / "run",),
    }
    return [verb, *map(str, small[verb])]


OPTIONS = [
    (verb, option)
    for verb, command in main.commands.items()
    for option in command.params
    if isinstance(option, click.Option) and not option.is_flag
]


def values_of(verb, option):
    """Values far out, and those just within an option's bounds."""
    if isinstance(option.type, click.Choice):
        return ["²"]
    if option.opts[0] in PATHS:
        return [LONG]
    if option.type is click.INT:
        return COUNTED
    if option.type is not click.FLOAT:
        return TEXTS
    (bounds,) = (
        item.metadata
        for config in CONFIGS
        for item in option_fields(config)
        if config.__name__.lower().startswith(verb) and item.name == option.name
    )
    near = [bounds["least"]] if "least" in bounds else [bounds["above"] * 1.01 + 1e-300]
    return (*MEASURED, *(str(number) for number in (*near, bounds["below"] * 0.99)))


each_option = pytest.mark.parametrize(
    ("verb", "option"), OPTIONS, ids=[f"{verb} {option.opts[0]}" for verb, option in OPTIONS]
)


@each_option
def test_a_value_far_out_is_taken_or_refused_in_a_line(home, tally, tmp_path, verb, option):
    try_values(
        home, tally[verb], tmp_path, verb, option, sorted(BY_DEFAULT & {*values_of(verb, option)})
    )


@pytest.mark.slow
@each_option
def test_every_value_far_out_is_taken_or_refused_in_a_line(home, tally, tmp_path, verb, option):
    try_values(home, tally[verb], tmp_path, verb, option, values_of(verb, option))


def try_values(home, counts, folder, verb, option, values):
    """Each ends as it should, or in one line."""
    counts["options"] += 1
    for number, value in enumerate(values):
        (folder / str(number)).mkdir()
        words = [*words_of(home, verb), option.opts[0], value]
        with contextlib.chdir(folder / str(number)):
            result = CliRunner().invoke(main, words, catch_exceptions=False)
        told = [line for line in result.stderr.splitlines() if line.lower().startswith("error: ")]
        counts["values"] += 1
        assert result.exit_code in (0, 1, 2) and len(told) == (result.exit_code > 0), value[:20]
        counts["refused"] += result.exit_code > 0
        counts["survived"] += 1


def test_the_smallest_command_of_every_verb_ends_well(home, tmp_path):
    """Else no option's value would be what ends it."""
    with contextlib.chdir(tmp_path):
        for verb in main.commands:
            result = CliRunner().invoke(main, words_of(home, verb), catch_exceptions=False)
            assert result.exit_code == 0, result.output


def test_every_number_has_bounds():
    for config in CONFIGS:
        kinds = typing.get_type_hints(config)
        for item in option_fields(config):
            if {int, float} & {kinds[item.name], *typing.get_args(kinds[item.name])}:
                bounds = item.metadata.keys()
                assert "below" in bounds and {"least", "above"} & bounds, item.name
