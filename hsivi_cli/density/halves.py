"""When to stop: when the draws after half of a training agree with those after all of it.

A training of `--steps auto` is one of FIRST_MARK steps that goes on as one of twice as many, and so
on up to --most-steps. At the end of each of these, a *mark*, the rates have fallen to 0 and the
draws are measured; the mark before it is half of it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

from ..config import FIRST_MARK, InferConfig
from .networks import Networks
from .quality import lower_bound

COUNT = 20_000  # draws whose moments are taken
CLOSE = {"mean": 0.03, "sd": 0.03, "bound": 0.03}  # in sds, in parts, in nats beyond 2 errors


def marks(config: InferConfig) -> list[int]:
    """The steps after which a training is measured; the last is the most that there may be."""
    found, mark = [], FIRST_MARK
    while config.auto and mark < config.steps:
        found.append(mark)
        mark *= 2
    return [*found, config.steps]


def part_at(config: InferConfig, step: int) -> InferConfig:
    """The settings at a step: those of a training that ends at the next mark."""
    if not config.auto:
        return config
    end = next((mark for mark in marks(config) if step < mark), config.steps)
    return replace(config, steps=end, auto=False)


def measure(networks: Networks, config: InferConfig, step: int) -> dict:
    """What the draws of a mark are: the bound, and their means and sds [dim], of the same noises at
    every mark.
    """
    draws = networks.ema.sample(COUNT, config.seed).double()
    bound = lower_bound(networks.ema, networks.bridge.target, 2000, 500, config.seed)
    kept = {name: bound[name] for name in ("lower_bound", "standard_error")}
    return {"step": step, **kept, "mean": draws.mean(0).tolist(), "sd": draws.std(0).tolist()}


def gaps(half: dict, whole: dict) -> dict[str, float]:
    """How far two marks differ at worst, by the names of CLOSE."""
    sds = list(zip(half["sd"], whole["sd"], strict=True))
    means = zip(half["mean"], whole["mean"], sds, strict=True)
    error = math.hypot(half["standard_error"], whole["standard_error"])
    return {
        "mean": max(abs(a - b) / max(*sd, 1e-12) for a, b, sd in means),
        "sd": max(abs(a / max(b, 1e-12) - 1) for a, b in sds),
        "bound": max(0.0, abs(whole["lower_bound"] - half["lower_bound"]) - 2 * error),
    }


def agree(half: dict, whole: dict) -> bool:
    return all(gap <= CLOSE[name] for name, gap in gaps(half, whole).items())


def settled(found: list[dict], patience: int) -> bool:
    """Whether the last `patience` pairs of marks that follow one another agree."""
    pairs = list(pairwise(found))[-patience:]
    return len(pairs) == patience and all(agree(*pair) for pair in pairs)


def in_words(found: list[dict]) -> str:
    """How the last two marks differ."""
    gap = gaps(*found[-2:])
    return (
        f"after {found[-2]['step']} and {found[-1]['step']} steps means differ by up to "
        f"{gap['mean']:.2g} sds, sds by {gap['sd']:.2%}, the bound by {gap['bound']:.2g}"
    )


def doubt(found: list[dict], patience: int) -> str | None:
    """That a training has come to its most steps without halves that agree, in words."""
    if settled(found, patience):
        return None
    return f"{in_words(found)}, more than they may: give a higher --most-steps"
