"""The teacher as its own judge: features that it has of images, and images of its own to measure
others from. So a training is judged where there are no data.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from torch import Tensor

from ..files.device import exact_float32
from ..files.images import to_images
from ..method.chain import Chain
from ..models.draw import Sampler, draw, solver_sampler
from ..models.starts import Judge, images
from ..models.teacher import Teacher
from .detectors import Detector
from .frechet import Moments, frechet_distance
from .statistics import moments_of

LOW = 0.02  # of the schedule's times: there features tell images apart best
OWN_CALLS = 20  # of the sampler whose images stand for the teacher's own
START_IMAGES = 200  # by which starts are judged
OWN_SEED = 2_000_000_000  # the seeds of those images are no other draw's


def own_detector(teacher: Teacher) -> Detector:
    """The teacher's middle block, averaged over space, on clean images at a low time.

    Of a teacher with classes all images are seen as of the first.
    """
    unet, time = teacher.unet, round(LOW * len(teacher.table))
    block = unet.mid_block if unet.mid_block is not None else unet.down_blocks[-1]
    signal = teacher.table[time].sqrt().item()

    def features(images: Tensor) -> Tensor:
        seen: list[Tensor] = []

        def look(module, given, out) -> None:
            seen.append((out[0] if isinstance(out, tuple) else out).mean((2, 3)))

        x = images.to(unet.device).permute(0, 3, 1, 2).float().div(127.5).sub(1) * signal
        labels = None if teacher.label_count is None else x.new_zeros(len(x)).long()
        hook = block.register_forward_hook(look)
        try:
            with exact_float32(unet.device):
                unet(x, time, class_labels=labels)
        finally:
            hook.remove()
        return seen[0].float()

    width = unet.config.block_out_channels[-1]
    return Detector(f"middle block of {teacher.digest} at {time}", width, features)


def own_sampler(teacher: Teacher) -> Sampler:
    """What stands for the teacher itself: many calls, x0 in range as its pipeline keeps it."""
    calls = min(OWN_CALLS, len(teacher.table) // 2)
    return solver_sampler(teacher, "unipc-auto", calls, kind="teacher", clip=teacher.clip)


def own_images(teacher: Teacher, count: int) -> Iterator[Tensor]:
    """`count` of the teacher's own images, uint8 [B, H, W, C], in batches."""
    seeds = range(OWN_SEED, OWN_SEED + count)
    return draw(own_sampler(teacher), seeds, min(count, 256), teacher.unet.device)


def start_judge(teacher: Teacher) -> Judge:
    """A judge of starts: how far a chain's images, as a set, are from the teacher's own, in its own
    features.
    """

    @cache
    def own() -> tuple[Detector, Moments]:
        detector = own_detector(teacher)
        return detector, moments_of(own_images(teacher, START_IMAGES), detector)[0]

    def judge(chain: Chain) -> float:
        detector, wanted = own()
        drawn = to_images(images(teacher, chain, START_IMAGES)).split(64)
        return frechet_distance(moments_of(drawn, detector)[0], wanted)

    return judge
