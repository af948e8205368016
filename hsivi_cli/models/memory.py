"""Where in a training something went wrong, and what helps: of memory, and of numbers."""

from __future__ import annotations

from ..config import TrainConfig
from ..method.distill import opening_rounds
from ..method.regress import regress_rounds, regressed


def where_in(config: TrainConfig, round_: int) -> str:
    """The place of a round in its training, in words."""
    if round_ < regress_rounds(config):
        return f"after {regressed(config, round_ + 1)} updates of regression"
    step = round_ + 1 - opening_rounds(config)
    return f"at step {step}" if step > 0 else "in the fake score's warm-up"


def calmer(config: TrainConfig, round_: int) -> str:
    """What to change where a round was not finite, in words."""
    lower = "a lower --student-rate or --fake-rate, or more --fake-updates"
    if round_ < regress_rounds(config):
        lower = "a lower --regress-rate"
    elif round_ < opening_rounds(config):
        lower = "a lower --fake-rate"
    return lower + (", or --dtype float32" if config.dtype == "bfloat16" else "")


def advice(config: TrainConfig, world: int) -> str:
    """The options by which an update needs less, those that change no number first.

    world  processes that share each batch
    """
    mine = config.batch_size // world
    parts, found = min(2 * config.accumulate, mine), []
    if parts > config.accumulate:
        less = "halves" if parts == 2 * config.accumulate else "lessens"
        found.append(f"--accumulate {parts} {less} what an update needs")
    if not config.checkpoint_activations:
        found.append("--checkpoint-activations keeps less of it")
    if mine > 1:
        found.append("a smaller --batch-size makes smaller updates")
    return "; ".join(found) or "not one sample fits; give another --device"
