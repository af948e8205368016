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

    def work(tensors: list[Tensor]) -> Tensor:
        begun, heard = tensors if labels is not None else (*tensors, None)
        visits = list(walk(networks.teacher_eps, path.chain, begun, labels=heard))
        return torch.stack([*(visits[-place].x for place in path.places), visits[-1].mean])

    walked, size = [], networks.batch_shape or math.ceil(config.batch_size / config.accumulate)
    for part in torch.arange(len(noise), device=noise.device).split(size):
        begun = [networks.filled(t[part]) for t in (noise, labels) if t is not None]
        kind = ("path", round_ % len(networks.chains), len(begun[0]))
        walked.append(networks.perform.on(kind, begun, work)[:, : len(part)])
    *states, ends = torch.cat(walked, 1)
    return torch.stack(states), ends, labels


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
    there, kind = networks.there(chain), ("regression", round_ % len(networks.chains))

    def work(batch: list[Tensor]) -> Tensor:
        return regression_update(networks, config, there, batch)

    for i in range(updates):
        ramp = min(rise(config, done + i), cosine(done + i, config.regress_steps))
        set_rate(networks.student_optimizer, config.regress_rate * ramp, 0.9)
        batch = batch_of(paths, index[i], layer[i])
        losses.append(networks.perform.on(kind, batch, work))
        average_student(networks, config, done + i)
    losses = torch.stack(losses).tolist()
    return shard.averages({"regression_loss": sum(losses) / len(losses)}, networks.device)


def batch_of(
    paths: tuple[Tensor, Tensor, Tensor | None], index: Tensor, layer: Tensor
) -> list[Tensor]:
    """What an update takes of `walk_paths`' paths of these indices [B], begun at these layers [B]:
    their states there and ends [B, ...], the layers, and labels [B] where there are any.
    """
    x, ends, labels = paths
    return [x[layer - 1, index], ends[index], layer, *([] if labels is None else [labels[index]])]


def regression_update(
    networks: Networks, config: TrainConfig, chain: Chain, batch: list[Tensor]
) -> Tensor:
    """One update of the student on a `batch_of` paths, the chain on the networks' device; nothing
    is read from there. Returns this process's loss, not finite if a gradient is not.
    """
    networks.student_optimizer.zero_grad()  # work that was broken off may have left gradients
    networks.student_low.renew()
    total, parts = 0.0, (tensor.tensor_split(config.accumulate) for tensor in batch)
    for x, ends, layer, *labels in zip(*parts, strict=True):
        if not len(x):
            continue
        time, alpha_bar = (t[layer].float() for t in (chain.time, chain.alpha_bar))
        eps = networks.student_eps(x, time, *(labels or [None]), alpha_bar)
        loss = regression_loss(eps_to_x0(eps, x, alpha_bar), ends).sum() / batch[0].numel()
        loss.backward()
        networks.student_low.collect()
        total = total + loss.detach().double()
    norm = update(networks.student_optimizer, config.clip, networks.shard)
    return torch.where(norm.isfinite(), total, norm.double())
