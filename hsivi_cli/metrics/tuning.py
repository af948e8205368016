"""Which spacing of a solver's is best on a teacher, by the images that each draws."""

from __future__ import annotations

import sys

from ..config import CompareConfig
from ..errors import HsiviError
from ..method.schedule import Clip
from ..models.draw import Sampler, chain_digest, solver_sampler
from ..models.spacings import SOLVERS, solver_names
from ..models.teacher import Teacher
from .ruler import Ruler

# successive halving over a family's spacings, in two rungs
FIRST_RUNG = 8  # all spacings draw --tune-count / 8 images
KEPT = 3  # those that go on to draw them all


def clips_of(teacher: Teacher, config: CompareConfig) -> tuple[Clip | None, ...]:
    """x0 as the network has it, and in range as the teacher's own pipeline keeps it, or clamped."""
    own = teacher.clip or Clip()
    return {"auto": (None, own), "on": (own,), "off": (None,)}[config.clip_x0]


def tuned(name: str, nfe: int, teacher: Teacher, ruler: Ruler) -> Sampler | None:
    """A solver on the teacher: the one named, or a family's best spacing; x0 clipped or not, as is
    better. None, with a warning, where nothing fits this many calls.

    Many spacings are tried by successive halving: all on few images, the best of them on all.
    """
    config = ruler.config
    candidates, reason = {}, None
    for spaced in solver_names((name,)) if name in SOLVERS else (name,):
        try:
            for clip in clips_of(teacher, config):
                sampler = solver_sampler(teacher, spaced, nfe, dtype=config.dtype, clip=clip)
                own = (sampler.digest, chain_digest(sampler))
                candidates.setdefault(own, sampler)  # equal ones are drawn once
        except HsiviError as error:  # a spacing that does not fit this many calls
            reason = reason or error
    if not candidates:
        print(f"warning: {name} is left out at {nfe} calls: {reason}", file=sys.stderr)
        return None

    def by_distance(count: int) -> list[Sampler]:
        return sorted(left, key=lambda sampler: ruler.tuning_distance(sampler, count))

    left, count = list(candidates.values()), ruler.tune_count
    few = count // FIRST_RUNG
    if len(left) > KEPT and few > ruler.judge.detector.feature_dim:
        left = by_distance(few)[:KEPT]
    return by_distance(count)[0] if len(left) > 1 else left[0]
