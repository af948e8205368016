"""Whether a training's networks keep x0 in the range of their data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..config import TrainConfig
from ..files.progress import say
from ..method.schedule import Clip
from .spacings import solver
from .starts import images
from .student import read_info
from .teacher import Teacher

CLIP_PAIRS, CLIP_CALLS = 32, 20  # noises and calls by which --clip-x0 auto looks
FAR, FAR_PART = 1.1, 0.01  # of images in [-1, 1], what lies beyond it, and how much of it matters
CLIP_GAP = 0.02  # of images in [-1, 1], root mean square: some three grey levels


def find_clip(
    config: TrainConfig, teacher: Teacher, earlier: Path | None, once: Callable[[Callable], object]
) -> Clip | None:
    """How a training's networks keep x0 in range: as --clip-x0 says, or as an earlier part of the
    run did. Arguments as in `find_chains`.
    """
    if earlier:
        stored = read_info(earlier).get("clip")
        return Clip(**stored) if stored else None
    if config.clip_x0 == "on":
        return teacher.clip or once(lambda: clip_of_unclipped(teacher))
    return once(lambda: clip_that_matters(teacher)) if config.clip_x0 == "auto" else None


def clip_that_matters(teacher: Teacher) -> Clip | None:
    """What the teacher's pipeline does to x0, if its images of many calls are others with it.

    A network that stays in range loses by it: a clamp's gradients end at the edge.
    """
    if teacher.clip is None:
        return None
    plain, clipped = (clip_images(teacher, clip).clamp(-1, 1) for clip in (None, teacher.clip))
    gap = (plain - clipped).square().mean().sqrt().item()
    return teacher.clip if gap > CLIP_GAP else None


def clip_of_unclipped(teacher: Teacher) -> Clip:
    """A clamp to [-1, 1] for a teacher whose pipeline has none; a line says where its own images
    leave that range.
    """
    part = (clip_images(teacher, None).abs() > FAR).float().mean().item()
    if part > FAR_PART:
        say(
            f"warning: --clip-x0 on: {part:.0%} of what {teacher.name} draws lies beyond [-1, 1], "
            "and its pipeline does not clip: a student that does will draw other images"
        )
    return Clip()


def clip_images(teacher: Teacher, clip: Clip | None) -> Tensor:
    """A few of the teacher's images of many calls, with such a clip."""
    calls = min(CLIP_CALLS, len(teacher.table) // 2)
    chain = solver("unipc-auto", calls, teacher.scheduler, teacher.table)
    return images(replace(teacher, clip=clip), chain, CLIP_PAIRS)
