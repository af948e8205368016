"""How many steps fit into --minutes, where --steps does not say: a few rounds are tried on networks
that are thrown away, and the whole schedule, the fall of the rate with it, is laid into what is
left.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..config import TrainConfig
from ..errors import HsiviError
from ..method.distill import opening_rounds, play_round
from ..method.networks import Networks
from ..method.regress import regress_rounds
from ..models.compiled import Forward, quick
from ..models.draw import draw
from ..models.networks import averaged_sampler
from ..models.teacher import Teacher
from .judge import Judge

MARGIN = 0.05  # of the time, for what varies and for checkpoints
LONG = 10_000_000  # steps, for a trial that is not to see the end of its schedule
TRIAL = 5  # rounds that are timed


@dataclass(frozen=True)
class Length:
    """steps    that fit into config.minutes, evaluations counted in; below 1 none does
    minutes  that one step needs
    """

    steps: int
    minutes: float


def planned(
    config: TrainConfig,
    make: Callable[[TrainConfig], Networks],
    teacher: Teacher,
    judge: Judge | None,
    forward: Forward,
    spent: float,
) -> Length:
    """How long a training of config.minutes is, of which some seconds are spent.

    make   networks of a configuration
    judge  of the evaluations to come, where there is one
    """
    begin, total = time.monotonic(), 60 * config.minutes
    trial = replace(config, steps=LONG, adversarial_after=0)
    networks, regressing, opening = make(trial), regress_rounds(config), opening_rounds(config)
    with quick(networks, trial, forward, main=False):
        regress = seconds_of_rounds(networks, trial, 0, 1) if regressing else 0.0
        seconds_of_rounds(networks, trial, opening, 2)  # the first of a kind are slower
        each = seconds_of_rounds(networks, trial, opening + 2, TRIAL) / TRIAL
    look = seconds_of_look(networks, teacher, judge, config) if judge else 0.0
    before = regressing * regress + (opening - regressing) * each + 2 * look
    spent += before + time.monotonic() - begin
    steps = ((1 - MARGIN) * total - spent) / (each + look / config.eval_every)
    return Length(math.floor(steps), (spent + each) / (1 - MARGIN) / 60)


def with_steps(config: TrainConfig, length: Length) -> TrainConfig:
    """The configuration of a length. Refuses one without a step."""
    if length.steps < 1:
        raise HsiviError(
            f"--minutes {config.minutes:g} are too few for a step and its evaluations here: give "
            f"{math.ceil(10 * length.minutes) / 10:g} or more; or name --steps, which may take "
            "several sittings"
        )
    return replace(config, steps=length.steps)


def seconds_of_rounds(networks: Networks, config: TrainConfig, first: int, count: int) -> float:
    begin = time.monotonic()
    for round_ in range(first, first + count):
        play_round(networks, config, round_)  # reads its losses, so that it is over
    return time.monotonic() - begin


def seconds_of_look(
    networks: Networks, teacher: Teacher, judge: Judge, config: TrainConfig
) -> float:
    """What an evaluation takes: that of some images, times as many as there are."""
    size, seconds = min(64, config.eval_count), 0.0
    for chain in networks.chains:
        sampler = averaged_sampler(networks, chain, teacher, config.dtype)
        begin = time.monotonic()
        for batch in draw(sampler, range(size), size, networks.device):
            judge.detector.features(batch).sum().item()
        seconds += (time.monotonic() - begin) * config.eval_count / size
    return seconds
