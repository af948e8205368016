"""Configurations: what they refuse, and that their help is short and told in full in the docs."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from hsivi_cli.config import (
    BoostConfig,
    CompareConfig,
    FidConfig,
    InferConfig,
    SampleConfig,
    TrainConfig,
    flag_of,
    option_fields,
)
from hsivi_cli.errors import HsiviError

CONFIGS = (TrainConfig, InferConfig, BoostConfig, SampleConfig, FidConfig, CompareConfig)
DOCS = Path(__file__).parent.parent / "docs" / "options.md"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("nfe", "0"), ("nfe", "four"), ("nfe", "2,"), ("nfe", "2,4,2"), ("nfe", "2,4,02"),
        ("batch_size", 0), ("accumulate", 0), ("fake_updates", 0), ("steps", -1),
        ("fake_warmup", -1), ("rate_warmup", -1), ("checkpoint_every", 0), ("eval_every", 0),
        ("eval_count", 1), ("student_rate", 0.0), ("fake_rate", -1.0), ("clip", 0.0),
        ("level_power", 0.0),
        ("student_rate", float("nan")), ("student_beta1", 1.0), ("fake_beta1", -0.1), ("ema", 1.0),
        ("student_rate", 1e300), ("objective", "l2"),
        ("minutes", 0.0), ("minutes", -1.0), ("student_rate", float("inf")), ("a", float("nan")),
        ("nfe", "²"),
    ],
)  # fmt: skip
def test_numbers_that_mean_nothing_are_refused_by_name(option, value):
    with pytest.raises(HsiviError, match=flag_of(option)):
        TrainConfig(**{option: value})


@pytest.mark.parametrize("option", ["steps", "student_rate", "grid_top", "objective"])
def test_true_is_no_value_of_an_option_that_takes_others(option):
    with pytest.raises(HsiviError, match=f"{flag_of(option)} True"):
        TrainConfig(**{option: True})
    assert TrainConfig(adversarial=0.5, data="x", flip=True).flip


@pytest.mark.parametrize(
    ("config", "option", "value"),
    [
        (InferConfig, "ema", 1.0),
        (BoostConfig, "calls", 0),
        (BoostConfig, "held_out", 0.9),
        (InferConfig, "order", "random"),
        (SampleConfig, "nfe", 0),
        (FidConfig, "count", 1),
        (CompareConfig, "repeats", 0),
    ],
)
def test_every_configuration_checks_itself(config, option, value):
    with pytest.raises(HsiviError, match=f"{flag_of(option)} {value}"):
        config(**{option: value})


def test_a_density_has_its_own_defaults_of_what_both_runs_say_alike():
    images, density = TrainConfig(), InferConfig()
    shared = {item.name for item in option_fields(TrainConfig)}
    shared &= {item.name for item in option_fields(InferConfig)}
    differ = {name for name in shared if getattr(images, name) != getattr(density, name)}
    rates = {"student_rate", "fake_rate", "student_beta1", "clip", "ema"}
    kinds = {"steps", "batch_size", "checkpoint_every", "objective", "levels", "a"}
    assert differ == rates | kinds
    assert (density.student_rate, density.ema, density.clip) == (None, 0.99, 10.0)


@pytest.mark.parametrize("config", CONFIGS)
def test_an_options_help_is_short(config):
    texts = {item.name: item.metadata["help"] for item in option_fields(config)}
    assert texts and not {name: text for name, text in texts.items() if len(text) > 120}


def test_the_table_of_options_names_what_there_is():
    known = {flag_of(item.name) for config in CONFIGS for item in fields(config)}
    known |= {"--dim", "--target", "--preset", "--config", "--dry-run", "--help"}
    told = set(re.findall(r"--[a-z][a-z0-9-]*", DOCS.read_text()))
    assert told and told <= known
