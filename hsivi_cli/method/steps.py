"""What every update needs: seeded generators, shards of a batch, rates, optimizers, averages.

Everything random is a function of (seed, round, purpose), drawn on the CPU for the whole global
batch; a process takes its shard of it. So a run neither depends on how many processes there are nor
on having been interrupted.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import TrainConfig


@dataclass(frozen=True)
class Shard:
    """Which part of a global batch is this process's: samples rank, rank + world, ... `mean`
    averages tensors over processes.
    """

    rank: int = 0
    world: int = 1
    mean: Callable[[Tensor], Tensor] = torch.clone

    def of(self, batch: Tensor) -> Tensor:
        """This process's samples [B / world, ...] of a global batch [B, ...]."""
        return batch[self.rank :: self.world]

    def places(self, index: Tensor) -> Tensor:
        """Indices [B] into a global pool as this process's [B / world] into its own shard of that
        pool: pools and batches are dealt out alike.
        """
        return torch.div(self.of(index), self.world, rounding_mode="floor")

    def any(self, so: bool, device: torch.device) -> bool:
        """Whether something is so on one of the processes."""
        return so if self.world == 1 else self.mean(torch.tensor(float(so), device=device)) > 0

    def averages(self, measured: dict[str, float], device: torch.device) -> dict[str, float]:
        """Measurements averaged over processes."""
        if self.world == 1:
            return measured
        values = self.mean(torch.tensor(list(measured.values()), device=device))
        return dict(zip(measured, values.tolist(), strict=True))


def pick(uses: Tensor, count: int, layers: list[int]) -> tuple[Tensor, Tensor]:
    """Which sample and layer the n-th use of a pool takes: every pair once before any is taken
    twice.

    uses     [B]  0, 1, 2, ... over the round
    count         samples of the pool
    Returns  [B], [B]  sample's index and layer k
    """
    sample = uses % count
    return sample, torch.tensor(layers)[(sample + uses // count) % len(layers)]


def rng(seed: int, *key: int | str) -> torch.Generator:
    """A generator that is a function of its arguments alone."""
    digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def make_optimizer(kind: str, parameters, rate: float, beta1: float) -> torch.optim.Optimizer:
    """Adam or a relative, fused: it leaves everything as it is after a gradient that is not finite,
    and no host looks. On a GPU its rate is a tensor and may change within a captured graph.
    """
    parameters = list(parameters)
    first = parameters[0]["params"][0] if isinstance(parameters[0], dict) else parameters[0]
    cls = torch.optim.AdamW if kind == "adamw" else torch.optim.Adam
    made = cls(
        parameters,
        lr=torch.tensor(rate, device=first.device) if first.is_cuda else rate,
        betas=(beta1, 0.999),
        amsgrad=kind == "amsgrad",
        fused=True,
        capturable=first.is_cuda,
    )
    made._warned_capturable_if_run_uncaptured = True  # the first steps are not, and need not be
    return made


def set_rate(optimizer: torch.optim.Optimizer, rate: float, beta1: float) -> None:
    """Give an optimizer of `make_optimizer` another rate and beta1."""
    for group in optimizer.param_groups:
        group["betas"] = (beta1, 0.999)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def part_of(config: TrainConfig, step: int) -> tuple[int, int, int]:
    """The part of the training that a step lies in: its number, its first step and the next part's.

    Jointly all is one part; in sequential order the layers of the longest chain have one each, of
    equal steps.
    """
    parts = 1 if config.order == "joint" else config.layer_count
    steps = max(1, config.steps)
    part = min(parts - 1, step * parts // steps)
    first, end = (math.ceil(number * steps / parts) for number in (part, part + 1))
    return part, first, end


def student_rate(config: TrainConfig, step: int) -> float:
    """The student's learning rate at a step: in every part of the training a linear rise, then a
    cosine to 0 at its end.
    """
    _, first, end = part_of(config, step)
    fall = cosine(step - first, end - first) if config.decay == "cosine" else 1.0
    return config.student_rate * min(rise(config, step - first), fall)


TRUSTED = 1.001e-3  # of the student's rates summed over steps, by which it moves: the default's 200


def moved(config: TrainConfig, steps: int) -> float:
    """The student's rates summed over so many steps: how far it may have come."""
    return sum(student_rate(config, step) for step in range(steps))


def joins(config: TrainConfig, step: int) -> bool:
    """Whether the adversarial term is part of the student's loss at a step: once the student has
    learned from config.adversarial_after images by the scores alone.
    """
    return config.adversarial > 0 and step * config.batch_size >= config.adversarial_after


def rise(config: TrainConfig, step: int) -> float:
    """The part of its rate that a network takes in its first updates."""
    return min(1.0, (step + 1) / max(1, config.rate_warmup))


def cosine(step: int, steps: int) -> float:
    """From 1 at step 0 to 0 at `steps`."""
    return 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))


def warmup_rounds(config: TrainConfig) -> int:
    """Rounds before the first step, which train the fake score alone."""
    return math.ceil(config.fake_warmup / config.fake_updates)


def later_warmups(config: TrainConfig, step: int) -> range:
    """As many rounds before the first step of each later part of the training. They are played
    within that step's round and numbered below 0, so that rounds count steps on.
    """
    part, first, _ = part_of(config, step)
    count = warmup_rounds(config)
    return range(-part * count, (1 - part) * count) if part and step == first else range(0)


def active_layers(config: TrainConfig, nfe: int, step: int) -> list[int]:
    """The layers of a chain of nfe that train at a step: all, or in sequential order one at a time
    from the top.
    """
    if config.order == "joint":
        return list(range(1, nfe + 1))
    return [nfe - part_of(config, step)[0] * nfe // config.layer_count]


def update(
    optimizer: torch.optim.Optimizer, clip: float, shard: Shard, masked: bool = False
) -> Tensor:
    """Average gradients over processes, clip, step. Returns the gradient norm, not finite if any
    gradient is not: then a `make_optimizer` makes no step. Nothing is read from the device.

    masked  whether the elements of gradients that are not finite become 0, as SiD's do
    """
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    gradients = [p.grad for p in trained]
    if shard.world > 1:
        flat = shard.mean(torch.cat([g.flatten() for g in gradients]))
        for gradient, part in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))
    if masked:
        for gradient in gradients:
            torch.nan_to_num_(gradient, nan=0.0, posinf=0.0, neginf=0.0)
    norm = torch.nn.utils.get_total_norm(gradients)
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = (~torch.isfinite(norm)).float()  # where it is 1, no step is made
    torch.nn.utils.clip_grads_with_norm_(trained, clip, norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


@torch.no_grad()
def ema_update(
    averages: Iterable[Tensor], tensors: Iterable[Tensor], decay: float, step: int
) -> None:
    """Move averages towards their tensors, in place, the less the later."""
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(averages), list(tensors), 1 - decay)
