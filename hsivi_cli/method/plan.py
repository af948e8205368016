"""A training's rounds: of regression, of warming the fake score up, of steps."""

from __future__ import annotations

from ..config import TrainConfig
from ..files.run import Plan
from .distill import opening_rounds
from .regress import regress_rounds

SAVE_REGRESSION = 4  # rounds of regression between checkpoints, as long as some 50 steps


def plan_of(config: TrainConfig) -> Plan:
    """Rounds of regression, of warming the fake score up, and of steps."""
    regression, opening = regress_rounds(config), opening_rounds(config)

    def step(rounds: int) -> int:
        return max(0, rounds - opening)

    def due(rounds: int) -> bool:
        if rounds <= regression:  # at the last one the student is regressed and not yet distilled
            return rounds == regression or (rounds - 1) % SAVE_REGRESSION == 0
        return step(rounds) > 0 and step(rounds) % config.checkpoint_every == 0

    return Plan(0, opening + config.steps if config.steps else regression, step, due)
