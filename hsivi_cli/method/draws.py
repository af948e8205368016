"""All that is random in a round of training, drawn on the CPU.

It is a function of (seed, round, purpose), drawn for the whole global batch; a process takes its
shard. So it may be drawn at any time, by any thread, and travel to a device as one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..config import TrainConfig
from .chain import draw_levels
from .networks import Networks, draw_labels
from .steps import active_layers, pick, rng


def pool_size(config: TrainConfig, layer_count: int) -> int:
    """Samples to roll out in a round, so that no mean is used more than about twice. A multiple of
    8, to split evenly.
    """
    uses = config.batch_size * (config.fake_updates + 1)
    return 8 * math.ceil(uses / (2 * layer_count) / 8)


Start = tuple[Tensor, list[Tensor], Tensor | None]  # x_K, noises of the layers K..2, labels


def draw_start(networks: Networks, config: TrainConfig, round_: int, layers: list[int]) -> Start:
    """This process's shard of what a round's roll-out begins with, on the CPU."""
    count, mine = pool_size(config, len(layers)), networks.shard.of
    draw = rng(config.seed, round_, "roll-out")
    x, *noise = (
        mine(torch.randn(count, *networks.shape, generator=draw))
        for _ in range(networks.chain(round_).nfe)
    )
    return x, noise, draw_labels(networks, count, draw)


@dataclass(frozen=True)
class Batch:
    """A process's shard of a batch: which sample (of its own pool) and layer, where observed, with
    which noise; beside them the real images, uint8, that a discriminator sees at the same levels
    and noises, and their labels. All [B, ...].
    """

    sample: Tensor
    layer: Tensor
    tau: Tensor
    noise: Tensor
    real: Tensor | None = None
    real_labels: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """Those that there are."""
        found = (getattr(self, item.name) for item in fields(self))
        return [tensor for tensor in found if tensor is not None]

    def parts(self, count: int) -> list[Batch]:
        split = [torch.tensor_split(t, count) for t in self.tensors()]
        return [Batch(*part) for part in zip(*split, strict=True) if len(part[0])]


def draw_batch(
    networks: Networks,
    config: TrainConfig,
    round_: int,
    purpose: str,
    update: int,
    layers: list[int],
) -> Batch:
    """This process's shard of the update-th batch of a round, on the CPU. The fake score's has real
    images where there is a discriminator.
    """
    size, chain = config.batch_size, networks.chain(round_)
    index, layer = pick(torch.arange(size) + update * size, pool_size(config, len(layers)), layers)
    draw = rng(config.seed, round_, purpose, update)
    place = torch.rand(size, generator=draw).double() ** config.level_power
    tau = draw_levels(chain, layer, place, config.levels, networks.table)
    noise = torch.randn(size, *networks.shape, generator=draw)
    shard, real = networks.shard, ()
    if networks.discriminator and purpose == "fake score":
        real = draw_real(networks, config, round_, update)
    return Batch(shard.places(index), shard.of(layer), shard.of(tau), shard.of(noise), *real)


def draw_real(
    networks: Networks, config: TrainConfig, round_: int, update: int
) -> tuple[Tensor, Tensor | None]:
    """This process's shard of the real images of an update, uint8 [B, C, H, W], and their labels
    [B]: a function of (seed, round, update).
    """
    images, draw = networks.discriminator.images, rng(config.seed, round_, "real", update)
    place = networks.shard.of(torch.randint(images.count, (config.batch_size,), generator=draw))
    real = images.read(place)
    if images.mirrored:
        turned = networks.shard.of(torch.rand(config.batch_size, generator=draw) < 0.5)
        real = torch.where(turned[:, None, None, None], real.flip(3), real)
    return real, None if images.labels is None else images.labels[place]


@dataclass(frozen=True)
class Draws:
    """All that is random in a round, in the order of its use: the roll-out's start and the batches
    of its updates.
    """

    start: Start
    batches: list[Batch]

    def tensors(self) -> list[Tensor]:
        x, noise, labels = self.start
        found = [x, *noise, *([] if labels is None else [labels])]
        return found + [tensor for batch in self.batches for tensor in batch.tensors()]

    def to(self, device: torch.device) -> Draws:
        return self.like([t.to(device) for t in self.tensors()])

    def like(self, tensors: list[Tensor]) -> Draws:
        """Draws of the same kind made of other `tensors`."""
        _, noise, labels = self.start
        rest = iter(tensors)
        start = (next(rest), [next(rest) for _ in noise], None if labels is None else next(rest))
        batches = [Batch(*(next(rest) for _ in batch.tensors())) for batch in self.batches]
        return Draws(start, batches)


def draw_round(
    networks: Networks, config: TrainConfig, round_: int, step: int, student: bool
) -> Draws:
    """This process's shard of all that is random in a round for the layers that train at a step, on
    the CPU.

    student  whether the student is updated too
    """
    layers = active_layers(config, networks.chain(round_).nfe, step)
    purposes = [("fake score", i) for i in range(config.fake_updates)]
    purposes += [("student", config.fake_updates)] if student else []
    return Draws(
        draw_start(networks, config, round_, layers),
        [draw_batch(networks, config, round_, *purpose, layers) for purpose in purposes],
    )
