"""A family fitted to a density in memory, without a folder."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields

from tqdm import tqdm

from ..config import InferConfig
from ..errors import HsiviError
from ..files.device import pick_device
from ..files.run import MOST, WINDOW
from ..method.steps import warmup_rounds
from .bridge import check_density, check_score
from .family import Family
from .halves import marks, measure, part_at, settled
from .named import probe
from .networks import Networks, has_fake_scores, make_networks, resolved
from .rounds import play_round
from .targets import Density, Target


def first_round(config: InferConfig) -> int:
    """Rounds are numbered with the fake scores' warm-up, which not all objectives have."""
    return 0 if has_fake_scores(config) else warmup_rounds(config)


def last_round(config: InferConfig) -> int:
    return warmup_rounds(config) + config.steps if config.steps else first_round(config)


def fit(log_prob: Callable | Target, dim: int, progress: bool = True, **options) -> Family:
    """The trained layers for a log density; the options are InferConfig's.

    log_prob  a torch function of x [B, dim] -> [B], up to a constant; or a Target (targets.py)
    Returns   the averaged family: .sample(count, seed) draws [count, dim]
    """
    target = log_prob if isinstance(log_prob, Target) else Density(log_prob, dim)
    if dim != target.dim or dim < 1:
        raise HsiviError(f"dim is {dim}: it must be the target's, and at least 1")
    for item in fields(InferConfig):
        if item.metadata.get("run_only") and item.name in options and item.name != "device":
            raise HsiviError(f"fit has no {item.name}: it is an option of a run in a folder")
    config = resolved(InferConfig(**options), target)
    device = pick_device(config.device)
    probe(config, target, device)
    networks = make_networks(config, target, None, device)
    first = first_round(config)
    found, skipped = [], []
    for round_ in tqdm(range(first, last_round(config)), disable=not progress, unit="step"):
        step = max(0, round_ - warmup_rounds(config))
        measured = play_round(networks, part_at(config, step), round_)
        if not all(map(math.isfinite, measured.values())):
            skipped = [one for one in skipped if one > round_ - WINDOW] + [round_]
            if len(skipped) > MOST:
                raise not_finite(networks, "the loss is not finite", step, "nothing was kept")
        if config.auto and step + 1 in marks(config):
            found.append(measure(networks, config, step + 1))
            if settled(found, config.patience):
                break
    return networks.ema


def check_target(networks: Networks) -> None:
    """Refuse a target whose density or score is not finite where the layers draw."""
    for k, x in enumerate(networks.ema.marginals(1000)[:-1]):
        check_score(networks.bridge.score(x, k), x)
        check_density(networks.bridge.log_prob(x, k), x)


def not_finite(networks: Networks, what: str, step: int, kept: str) -> HsiviError:
    """What to say of a training that ends in what is not finite: the target's own fault first.

    what  is not finite, in words
    kept  what there is to go back to, in words
    """
    check_target(networks)
    return HsiviError(
        f"{what} at step {step}; {kept}. Begin anew with a lower "
        "--student-rate or --fake-rate, more --layers, or a larger --start-scale"
    )
