"""The teacher as its own judge: features that it has of images, and images of its own to measure
others from. So a training is judged where there are no data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache

from torch import Tensor, nn

from ..files.device import exact_float32
from ..files.digest import digest
from ..files.images import from_images, to_images
from ..method.chain import Chain
from ..models.draw import Sampler, chain_digest, draw, solver_sampler
from ..models.starts import Judge, images
from ..models.teacher import Teacher
from .detectors import Detector
from .frechet import Moments, MomentSum, frechet_distance

LOW = 0.02  # of the schedule's times: there features tell images apart best
OWN_SOLVER, OWN_CALLS = "sde-dpm++3-auto", 20  # whose images stand for the teacher's own
PLAIN_SOLVER = "unipc-auto"  # whose do where starts are judged
START_IMAGES = 200  # by which starts are judged; and all are drawn in batches of so many
OWN_SEED = 2_000_000_000  # the seeds of those images are no other draw's
TINY = 1e-12  # a variance that is none: of a block of one pixel, or of images all alike


def low_time(teacher: Teacher) -> int:
    return round(LOW * len(teacher.table))


def own_detector(teacher: Teacher) -> Detector:
    """The teacher's middle block, averaged over space, on clean images at a low time."""
    unet = teacher.unet
    block = unet.mid_block if unet.mid_block is not None else unet.down_blocks[-1]

    def features(images: Tensor) -> Tensor:
        means, _ = seen_by(teacher, [block], *clean(teacher, images), lambda out: out.mean((2, 3)))
        return means[0]

    width = unet.config.block_out_channels[-1]
    stamp = f"middle block of {teacher.digest} at {low_time(teacher)}"
    return Detector(stamp, width, features)


def blocks_of(teacher: Teacher) -> dict[str, nn.Module]:
    """The U-Net's blocks, by name, downwards and up again."""
    unet = teacher.unet
    found = {f"down{i}": block for i, block in enumerate(unet.down_blocks)}
    found |= {"mid": unet.mid_block} if unet.mid_block is not None else {}
    return found | {f"up{i}": block for i, block in enumerate(unet.up_blocks)}


def clean(teacher: Teacher, images: Tensor) -> tuple[Tensor, int]:
    """Images uint8 [B, H, W, C], without noise, as states [B, C, H, W] of a low time, and it."""
    time = low_time(teacher)
    x = from_images(images.to(teacher.unet.device))
    return x * teacher.table[time].sqrt().item(), time


def seen_by(
    teacher: Teacher,
    blocks: Sequence[nn.Module],
    x: Tensor,
    time: int,
    told: Callable[[Tensor], Tensor],
) -> tuple[list[Tensor], Tensor]:
    """What is told of every block's output, float32 [B, channels, height, width], for states
    x [B, C, H, W] at a time, and what the network predicts, [B, C, H, W]. Of a teacher with classes
    all are seen as of the first.
    """
    unet, found = teacher.unet, {}

    def look(block: nn.Module, given, out) -> None:
        found[block] = told((out[0] if isinstance(out, tuple) else out).float())

    labels = None if teacher.label_count is None else x.new_zeros(len(x)).long()
    with ExitStack() as hooks, exact_float32(unet.device):
        for block in blocks:
            hooks.callback(block.register_forward_hook(look).remove)
        out = unet(x, time, class_labels=labels).sample
    return [found[block] for block in blocks], out[:, : x.shape[1]]


def own_sampler(teacher: Teacher, solver: str = OWN_SOLVER) -> Sampler:
    """What stands for the teacher itself: many calls of a solver, by default one that adds noise,
    which forgets the errors that another would keep; x0 in range as the teacher's pipeline keeps
    it.
    """
    calls = min(OWN_CALLS, len(teacher.table) // 2)
    return solver_sampler(teacher, solver, calls, kind="teacher", clip=teacher.clip)


@dataclass
class OwnImages:
    """The teacher's own images, by seeds that no other draw has.

    solver  by which they are drawn
    """

    teacher: Teacher
    solver: str = OWN_SOLVER

    @property
    def drawn_by(self) -> str:
        """A digest of all that they and the teacher's features of them depend on."""
        sampler = own_sampler(self.teacher, self.solver)
        return digest(sampler.digest, chain_digest(sampler), self.teacher.table)

    def batches(self, count: int) -> Iterator[Tensor]:
        """`count` of them, uint8 [B, H, W, C], in batches of at most START_IMAGES."""
        seeds, device = range(OWN_SEED, OWN_SEED + count), self.teacher.unet.device
        yield from draw(own_sampler(self.teacher, self.solver), seeds, START_IMAGES, device)


def start_judge(teacher: Teacher, pipeline: Teacher | None = None) -> Judge:
    """A judge of starts: how far a chain's images, as a set, are from the teacher's own, by the
    standard deviations over space of what every block of the teacher makes of them. Those are drawn
    without noise, as starts are: then what calls are too few for is what tells them apart.

    pipeline  the teacher whose images those are, where a training keeps x0 elsewise than it does

    The sum over blocks of the Frechet distance in units of the own images' variance. Means over
    space tell brightness, and of weak teachers they miss contrasts that are gone.
    """
    blocks = [*blocks_of(teacher).values()]

    def spreads(out: Tensor) -> Tensor:
        return out.std((2, 3), correction=0)

    def seen(batch: Tensor) -> list[Moments]:
        sums = [MomentSum() for _ in blocks]
        for part in batch.split(64):
            found, _ = seen_by(teacher, blocks, *clean(teacher, part), spreads)
            for total, spread in zip(sums, found, strict=True):
                total.update(spread)
        return [total.result() for total in sums]

    own = OwnImages(pipeline or teacher, PLAIN_SOLVER)
    wanted = cache(lambda: seen(next(own.batches(START_IMAGES))))

    def judge(chain: Chain) -> float:
        drawn = seen(to_images(images(teacher, chain, START_IMAGES)))
        pairs = zip(drawn, wanted(), strict=True)
        return sum(frechet_distance(a, b) / max(b.cov.trace().item(), TINY) for a, b in pairs)

    return judge
