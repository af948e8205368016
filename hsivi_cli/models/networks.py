"""The networks of a teacher's distillation: made, begun with another run's, kept as tensors."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from ..config import TrainConfig
from ..errors import HsiviError
from ..files.checkpoint import (
    load_checkpoint,
    load_modules,
    load_optimizer,
    module_tensors,
    optimizer_tensors,
)
from ..files.images import NotFinite
from ..method import schedule
from ..method.chain import Chain
from ..method.networks import Networks, RealImages, TeacherPath, make_networks
from ..method.steps import Shard
from .compiled import Forward, forward
from .discriminator import make_discriminator
from .draw import Sampler, draw
from .spacings import unipc_at
from .student import load_student
from .teacher import Teacher, difference, recompute

MODULES = ("student", "ema", "fake_score")
PATH_CALLS = 8  # of the teacher's paths that --regress-steps regresses on


def networks_of(
    config: TrainConfig,
    teacher: Teacher,
    chains: list[Chain],
    shard: Shard | None = None,
    forward: Forward = forward,
    images: RealImages | None = None,
) -> Networks:
    """The networks of a training; student and fake score begin as the teacher, and all of them keep
    x0 in range as it does.

    images  real ones, from which the fake score's encoder tells drawn ones
    """
    student, fake_score = teacher.new_unet(), teacher.new_unet()
    if config.conditions_layers:
        fake_score = teacher.layer_conditioned_unet(sum(chain.nfe for chain in chains))
    again = config.checkpoint_activations
    if again:
        recompute(teacher.frozen(config.dtype))
        recompute(fake_score)  # which a discriminator calls as it stands
    return make_networks(
        config,
        chains,
        student=student,
        fake_score=fake_score,
        network=lambda unet: teacher.training(unet, config.dtype, forward, again),
        teacher_eps=teacher.network(None, config.dtype, forward, teacher.clip),
        table=teacher.table,
        shape=teacher.shape,
        label_count=teacher.label_count,
        prediction=teacher.prediction,
        paths=[make_path(chain, teacher) for chain in chains] if config.regress_steps else [],
        shard=shard,
        discriminator=images and make_discriminator(teacher, fake_score, config.dtype, images),
    )


def make_path(chain: Chain, teacher: Teacher) -> TeacherPath:
    """The teacher's own way down, in about PATH_CALLS calls of UniPC, through the levels of a
    chain.

    It begins near full noise, above the chain's top where that is lower: there a solver's images
    are good, while x_K is standard normal in both.
    """
    times = [int(t) for t in chain.time]
    above = schedule.grid("auto", min(PATH_CALLS, len(teacher.table) // 2), teacher.table)[-1]
    ends = [*times[:-1], max(times[-1], above)]
    root = 1 / schedule.AUTO_POWER
    depth = (-teacher.table.log()).sqrt() ** root  # equal steps of it are the auto grid's
    part = torch.linspace(0, 1, 1 + math.ceil(PATH_CALLS / chain.nfe), dtype=torch.float64)[1:]
    visited = set()
    for low, high in pairwise(ends):
        inner = schedule.nearest(depth, depth[low] + part * (depth[high] - depth[low]))
        visited |= {min(max(int(t), low + 1), high) for t in inner}
    visited = sorted(visited)
    return TeacherPath(
        unipc_at(visited, teacher.scheduler, teacher.table),
        [visited.index(t) + 1 for t in ends[1:]],
    )


def begin_from(networks: Networks, path: str, teacher: Teacher) -> float:
    """--init: begin with another run's averaged student, its noise scale where the shapes agree,
    and its fake score. Returns the seconds that it took.
    """
    other = load_student(path, networks.device)
    if unlike := difference(other.info["teacher"], teacher.identity):
        raise HsiviError(f"--init {path} is a student of another teacher, with {unlike}")
    networks.student.load_state_dict(other.model.unet.state_dict())
    networks.ema.load_state_dict(other.model.unet.state_dict())
    scale = other.log_scales[max(other.chains)].to(networks.device)
    if scale.shape == networks.log_scale.shape and networks.log_scale.requires_grad:
        networks.log_scale.data.copy_(scale)
        networks.ema_scale.copy_(scale)
    found = load_checkpoint(Path(path) / "checkpoint")
    if found:  # all but the rows of a fake score that is conditioned on other layers
        own = networks.fake_score.state_dict()
        theirs = {name: found[0].get(f"fake_score.{name}") for name in own}
        fit = {n: t for n, t in theirs.items() if t is not None and t.shape == own[n].shape}
        networks.fake_score.load_state_dict(own | fit)
    return other.info["seconds"]


def training_tensors(networks: Networks) -> dict[str, Tensor]:
    """Everything that changes in training, by name."""
    tensors = module_tensors(networks, MODULES)
    tensors |= {"log_scale": networks.log_scale, "ema_scale": networks.ema_scale}
    tensors |= optimizer_tensors(networks.student_optimizer, "student_optimizer")
    return tensors | optimizer_tensors(networks.fake_optimizer, "fake_optimizer")


def load_training(networks: Networks, tensors: dict[str, Tensor]) -> None:
    """The inverse of `training_tensors`."""
    load_modules(networks, MODULES, tensors)
    networks.log_scale.data.copy_(tensors["log_scale"])
    networks.ema_scale.copy_(tensors["ema_scale"])
    load_optimizer(networks.student_optimizer, "student_optimizer", tensors)
    load_optimizer(networks.fake_optimizer, "fake_optimizer", tensors)


def averaged_sampler(networks: Networks, chain: Chain, teacher: Teacher, dtype: str) -> Sampler:
    """The averaged student of now as a sampler; it has no digest, as it still changes."""
    return Sampler(
        name="student",
        kind="student",
        network=teacher.network(networks.ema, dtype, clip=teacher.clip),
        chain=chain,
        log_scale=networks.ema_scale,
        shape=teacher.shape,
        label_count=teacher.label_count,
        digest="",
    )


def broken_budget(networks: Networks, teacher: Teacher, dtype: str) -> str | None:
    """Which budget's averaged student draws what is not finite, in words: weights that are finite
    may be large enough. Two images of each are drawn.
    """
    for chain in networks.chains:
        sampler = averaged_sampler(networks, chain, teacher, dtype)
        try:
            list(draw(sampler, range(2), 2, networks.device))
        except NotFinite:
            return f"the averaged student at --nfe {chain.nfe} draws NaN or infinite values"
    return None
