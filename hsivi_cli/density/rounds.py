"""Rounds of training of a family on a bridge."""

from __future__ import annotations

import torch

from ..config import InferConfig
from ..method.steps import (
    Shard,
    active_layers,
    ema_update,
    later_warmups,
    rng,
    student_rate,
    update,
    warmup_rounds,
)
from .networks import Networks, has_fake_scores
from .objectives import Pool, fake_loss, roll_out, student_loss


def train_fake_scores(
    networks: Networks, config: InferConfig, round_: int, pool: Pool, layers: list[int]
) -> dict[str, float]:
    """The updates of these layers' fake scores on a roll-out."""
    networks.fake_scores.requires_grad_(True)
    size, losses, norms = config.batch_size, [], []
    for i in range(config.fake_updates):
        draw = rng(config.seed, round_, "fake score", i)
        rows = torch.arange(i * size, (i + 1) * size) % len(pool.x[min(layers)])
        loss = sum(fake_loss(networks, config, pool, k, rows, draw) for k in layers)
        loss.backward()
        losses.append(loss.item())
        norms.append(update(networks.fake_optimizer, config.clip, Shard()).item())
    networks.fake_scores.requires_grad_(False)
    return {"fake_loss": sum(losses) / len(losses), "fake_norm": max(norms)}


def play_round(networks: Networks, config: InferConfig, round_: int) -> dict[str, float]:
    """One round, in place. Returns its measurements by name."""
    step = round_ - warmup_rounds(config)
    layers, family = active_layers(config, config.layers, max(0, step)), networks.family
    measured = {}
    if has_fake_scores(config):
        for warmup in later_warmups(config, max(0, step)):
            pool = roll_out(family, config, warmup, min(layers))
            train_fake_scores(networks, config, warmup, pool, layers)
    pool = roll_out(family, config, round_, min(layers))
    if has_fake_scores(config):
        measured = train_fake_scores(networks, config, round_, pool, layers)
    if step < 0:
        return measured
    for group in networks.optimizer.param_groups:
        group["lr"] = student_rate(config, step) * group.get("factor", 1)
    draw = rng(config.seed, round_, "student")
    found = {k: student_loss(networks, config, pool, k, draw) for k in layers}
    loss = sum(loss for loss, _ in found.values())
    loss.backward()
    norm = update(networks.optimizer, config.clip, Shard()).item()
    ema_update(networks.ema.parameters(), family.parameters(), config.ema, step)
    measured |= {"loss": loss.item(), "norm": norm}
    return measured | {f"divergence_{k}": value.item() for k, (_, value) in found.items()}
