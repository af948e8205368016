"""Regression before distilling: the teacher walks paths through the student's levels, and every
call learns where the path from its state ends [DMD, Yin et al. 2023]. No fake score takes part.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config import TrainConfig
from .chain import Chain, walk
from .losses import regression_loss
from .networks import Networks, average_student, draw_labels
from .schedule import eps_to_x0
from .steps import cosine, pick, rise, rng, set_rate, update

REGRESS_UPDATES = 64  # of a round of regression
USES = 8  # of each of its pairs


def regress_rounds(config: TrainConfig) -> int:
    return math.ceil(config.regress_steps / REGRESS_UPDATES)


def regressed(config: TrainConfig, round_: int) -> int:
    """Updates of regression that were made before a round."""
    return min(config.regress_steps, round_ * REGRESS_UPDATES)


@torch.no_grad()
def walk_paths(
    networks: Networks, config: TrainConfig, round_: int, updates: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """This process's shard of the paths of a round of regression: x_k of every layer [K, N, ...],
    where the paths end [N, ...], and labels [N] or None.
    """
    path = networks.paths[round_ % len(networks.chains)]
    draw = rng(config.seed, round_, "paths")
    count = path_count(config, updates, len(path.places))
    noise = torch.randn(count, *networks.shape, generator=draw)
    noise = networks.shard.of(noise).to(networks.device)
    labels = draw_labels(networks, count, draw)
    labels = None if labels is None else labels.to(networks.device)
    states, ends = [], []
    size = networks.batch_shape or math.ceil(config.batch_size / config.accumulate)
    for part in torch.arange(len(noise), device=noise.device).split(size):
        heard = None if labels is None else networks.filled(labels[part])
        begun = networks.filled(noise[part])
        visits = list(walk(networks.teacher_eps, path.chain, begun, labels=heard))
        states.append(torch.stack([visits[-place].x[: len(part)] for place in path.places]))
        ends.append(visits[-1].mean[: len(part)])
    return torch.cat(states, 1), torch.cat(ends), labels


def path_count(config: TrainConfig, updates: int, layer_count: int) -> int:
    """Paths of a round of regression, a multiple of 8."""
    return 8 * math.ceil(updates * config.batch_size / (USES * layer_count) / 8)


def regress(networks: Networks, config: TrainConfig, round_: int) -> dict[str, float]:
    """A round of regression: paths of the teacher, and updates that teach every layer's x0 their
    ends.
    """
    chain, size = networks.chain(round_), config.batch_size
    done = regressed(config, round_)
    updates = regressed(config, round_ + 1) - done
    paths = walk_paths(networks, config, round_, updates)
    count, layers = path_count(config, updates, chain.nfe), list(range(1, chain.nfe + 1))
    shard, losses = networks.shard, []
    index, layer = pick(torch.arange(updates * size), count, layers)
    index, layer = (
        torch.stack([of(batch) for batch in part.split(size)]).to(networks.device)
        for of, part in ((shard.places, index), (shard.of, layer))
    )
    for i in range(updates):
        ramp = min(rise(config, done + i), cosine(done + i, config.regress_steps))
        set_rate(networks.student_optimizer, config.regress_rate * ramp, 0.9)
        losses.append(regression_update(networks, config, chain, paths, index[i], layer[i]))
        average_student(networks, config, done + i)
    losses = torch.stack(losses).tolist()
    return shard.averages({"regression_loss": sum(losses) / len(losses)}, networks.device)


def regression_update(
    networks: Networks,
    config: TrainConfig,
    chain: Chain,
    paths: tuple[Tensor, Tensor, Tensor | None],
    index: Tensor,
    layer: Tensor,
) -> Tensor:
    """One update of the student on `walk_paths`' paths of these indices, begun at these layers.
    Returns this process's loss, not finite if a gradient is not.
    """
    (x, ends, labels), total = paths, 0.0
    there = networks.there(chain)
    for which, k in zip(
        index.tensor_split(config.accumulate), layer.tensor_split(config.accumulate), strict=True
    ):
        if not len(which):
            continue
        x_k, own = x[k - 1, which], None if labels is None else labels[which]
        time, alpha_bar = (t[k].float() for t in (there.time, there.alpha_bar))
        x0 = eps_to_x0(networks.student_eps(x_k, time, own, alpha_bar), x_k, alpha_bar)
        loss = regression_loss(x0, ends[which]).sum() / (len(index) * x[0, 0].numel())
        loss.backward()
        total = total + loss.detach().double()
    norm = update(networks.student_optimizer, config.clip, networks.shard)
    return torch.where(norm.isfinite(), total, norm.double())
