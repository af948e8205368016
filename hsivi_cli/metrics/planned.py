"""How long a training of --minutes is, where --steps does not say: a few rounds are tried on
networks that are thrown away, and the whole schedule, the fall of the rates with it, is laid into
what is left.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Set
from dataclasses import dataclass, replace

from ..config import FOLLOWS, TrainConfig, rate_of
from ..errors import HsiviError
from ..method.distill import opening_rounds, play_round
from ..method.networks import Networks
from ..method.regress import REGRESS_UPDATES, regress_rounds
from ..models.compiled import Forward, quick
from ..models.draw import draw
from ..models.networks import averaged_sampler
from ..models.teacher import Teacher
from .judge import Judge

MARGIN = 0.05  # of the time, for what varies and for checkpoints
LONG = 10_000_000  # steps, for a trial that is not to see the end of its schedule
TRIAL = 5  # rounds that are timed
REGRESSED = 0.6  # of the time at most, where steps follow: what 2 and 3 calls take by default


@dataclass(frozen=True)
class Length:
    """steps          that fit into config.minutes, evaluations counted in; below 1 none does
    regress_steps  updates of regression before them
    minutes        that one step needs
    """

    steps: int
    regress_steps: int
    minutes: float


def planned(
    config: TrainConfig,
    plans: Set[str],
    make: Callable[[TrainConfig], Networks],
    teacher: Teacher,
    judge: Judge | None,
    forward: Forward,
    spent: float,
) -> Length:
    """How long a training of config.minutes is, of which some seconds are spent.

    plans  settings that are to fit; regress_steps, where it is among them, only falls
    make   networks of a configuration
    judge  of the evaluations to come, where there is one
    """
    begin, total = time.monotonic(), 60 * config.minutes
    trial = replace(config, steps=LONG, adversarial_after=0)
    networks, regressing, opening = make(trial), regress_rounds(config), opening_rounds(config)
    regress = each = look = 0.0
    with quick(networks, trial, forward, main=False):
        if regressing:
            regress = steady(networks, lambda: play(networks, trial, 0, 1))
        if config.steps:
            play(networks, trial, opening, 2)  # the first of a kind are slower
            each = seconds_of(lambda: play(networks, trial, opening + 2, TRIAL)) / TRIAL
    if judge:
        look = steady(networks, lambda: look_at(networks, teacher, judge, config))
        look *= config.eval_count / size_of_look(config)
    spent += (opening - regressing) * each + 2 * look + time.monotonic() - begin
    left = (1 - MARGIN) * total - spent
    most = left * (REGRESSED if config.steps else 1)
    if "regress_steps" in plans and regressing * regress > most:
        regressing = max(1, math.floor(most / regress))
    left -= regressing * regress
    each = each and each + look / config.eval_every
    needed = total + (each - left) / (1 - MARGIN)
    updates = min(config.regress_steps, regressing * REGRESS_UPDATES)
    return Length(math.floor(left / each) if each else 0, updates, needed / 60)


def with_length(config: TrainConfig, plans: Set[str], length: Length) -> TrainConfig:
    """The configuration of a length, with the student's rate where `plans` has it. Refuses one
    without a step, or an update of regression.
    """
    if length.minutes > config.minutes:
        raise HsiviError(
            f"--minutes {config.minutes:g} are too few for a step and its evaluations here: give "
            f"{math.ceil(10 * length.minutes) / 10:g} or more; or name --steps, which may take "
            "several sittings"
        )
    rate = rate_of(length.steps) if FOLLOWS in plans else config.student_rate
    return replace(
        config, steps=length.steps, regress_steps=length.regress_steps, student_rate=rate
    )


def play(networks: Networks, config: TrainConfig, first: int, count: int) -> None:
    for round_ in range(first, first + count):
        play_round(networks, config, round_)  # reads its losses, so that it is over


def size_of_look(config: TrainConfig) -> int:
    """Images by which an evaluation is timed."""
    return min(64, config.eval_count)


def look_at(networks: Networks, teacher: Teacher, judge: Judge, config: TrainConfig) -> None:
    """Draw and see some images at every number of calls, as an evaluation does."""
    size = size_of_look(config)
    for chain in networks.chains:
        sampler = averaged_sampler(networks, chain, teacher, config.dtype)
        for batch in draw(sampler, range(size), size, networks.device):
            judge.detector.features(batch).sum().item()


def steady(networks: Networks, work: Callable[[], None]) -> float:
    """Seconds of what a training does often: on a GPU of the second time, as the first captures."""
    if networks.device.type == "cuda":
        work()
    return seconds_of(work)


def seconds_of(work: Callable[[], None]) -> float:
    begin = time.monotonic()
    work()
    return time.monotonic() - begin
