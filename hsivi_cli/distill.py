"""One round of training, over any networks and data: a roll-out, fake-score updates, and a student
update.

Between two student updates the student does not change, so one roll-out gives the states and means
of all layers, and every fake-score update needs only fresh noise on means it has. A *round* is a
roll-out with its fake-score updates; the first rounds warm the fake score up, every later one ends
with a *step*, one student update. Where one student serves several budgets of calls, each with a
chain of its own, rounds take the chains in turn.

Before all of these the student may *regress*, in rounds of its own: the teacher walks paths through
the student's levels, and every call learns where the path from its state ends, as in DMD's
regression on the teacher's own images [Yin et al. 2023]. No fake score takes part.

A fake score that is *told* its layer has a row of weights for every layer of every chain, and in
place of the labels hears which row: so it can hold a score for each of them at one level. One that
is not told learns their mixture there.

Everything random is a function of (seed, round, purpose), drawn on the CPU for the whole global
batch; a process takes its share of it. So a run neither depends on how many processes there are nor
on having been interrupted.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .chain import Chain, Network, draw_levels, observe, std_of, walk
from .config import TrainConfig
from .objective import (
    divergence_bound,
    fake_score_loss,
    level_weight,
    regression_loss,
    reverse_kl_loss,
    score_matching_loss,
)
from .schedule import eps_to_x0, over


@dataclass(frozen=True)
class Path:
    """A teacher's own way down through a student's levels.

    chain   a solver, without noise
    places  of the student's layers 1..K: layer k begins where the path's layer places[k-1] does
    """

    chain: Chain
    places: list[int]


@dataclass
class Players:
    """The networks of one training and what updates them.

    student, fake_score   modules that train; student_eps, fake_eps the same as networks (x, time,
                          labels, alpha_bar) -> eps
    teacher_eps           the frozen teacher as such a network
    ema                   the averaged student, a module like `student`
    log_scale, ema_scale  [1 or K, ...] the noise scale and its average
    chains                one for each budget of calls
    table                 [T] alpha_bar by time, float64
    shape                 of one sample
    label_count           classes of the teacher, None without
    told                  whether the fake score's labels are those of `fake_labels`
    paths                 of the teacher through each chain's levels, where the student regresses
    """

    student: nn.Module
    student_eps: Network
    fake_score: nn.Module
    fake_eps: Network
    teacher_eps: Network
    ema: nn.Module
    log_scale: nn.Parameter
    ema_scale: Tensor
    chains: Sequence[Chain]
    table: Tensor
    shape: tuple[int, ...]
    label_count: int | None
    told: bool
    student_optimizer: torch.optim.Optimizer
    fake_optimizer: torch.optim.Optimizer
    paths: Sequence[Path] = ()

    def chain(self, round_: int) -> Chain:
        """The chain whose turn a round is."""
        return self.chains[round_ % len(self.chains)]


def make_players(
    config: TrainConfig,
    chains: Sequence[Chain],
    student: nn.Module,
    fake_score: nn.Module,
    network: Callable[[nn.Module], Network],
    teacher_eps: Network,
    table: Tensor,
    shape: tuple[int, ...],
    label_count: int | None = None,
    paths: Sequence[Path] = (),
) -> Players:
    """The players of a configuration over these networks.

    network  makes a module that trains a network (x, time, labels, alpha_bar) -> eps
    """
    calls = sum(chain.nfe for chain in chains)
    rest = shape if config.log_scale == "pixel" else [1] * len(shape)
    log_scale = nn.Parameter(
        torch.zeros(
            calls if config.log_scale == "layer" else 1,
            *rest,
            device=next(student.parameters()).device,
        ),
        requires_grad=config.log_scale != "frozen",
    )
    trained = [*student.parameters(), *([log_scale] if log_scale.requires_grad else [])]
    return Players(
        student=student,
        student_eps=network(student),
        fake_score=fake_score,
        fake_eps=network(fake_score),
        teacher_eps=teacher_eps,
        ema=copy.deepcopy(student).requires_grad_(False),
        log_scale=log_scale,
        ema_scale=log_scale.detach().clone(),
        chains=chains,
        table=table,
        shape=shape,
        label_count=label_count,
        told=config.tells,
        paths=paths,
        student_optimizer=make_optimizer(
            config.optimizer, trained, config.student_rate, config.student_beta1
        ),
        fake_optimizer=make_optimizer(
            config.optimizer, fake_score.parameters(), config.fake_rate, config.fake_beta1
        ),
    )


@dataclass(frozen=True)
class Share:
    """Which part of a global batch is this process's: samples rank, rank + world, ... `mean`
    averages tensors over processes.
    """

    rank: int = 0
    world: int = 1
    mean: Callable[[Tensor], Tensor] = torch.clone


def rng(seed: int, *key: int | str) -> torch.Generator:
    """A generator that is a function of its arguments alone."""
    digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def make_optimizer(kind: str, parameters, rate: float, beta1: float) -> torch.optim.Optimizer:
    cls = torch.optim.AdamW if kind == "adamw" else torch.optim.Adam
    return cls(parameters, lr=rate, betas=(beta1, 0.999), amsgrad=kind == "amsgrad")


def student_rate(config: TrainConfig, step: int) -> float:
    """The student's learning rate at a step: a linear rise, then a cosine to 0 at the last step."""
    fall = cosine(step, config.steps) if config.decay == "cosine" else 1.0
    return config.student_rate * min(rise(config, step), fall)


def rise(config: TrainConfig, step: int) -> float:
    """The share of its rate that a network takes in its first updates."""
    return min(1.0, (step + 1) / max(1, config.rate_warmup))


def cosine(step: int, steps: int) -> float:
    """From 1 at step 0 to 0 at `steps`."""
    return 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))


def warmup_rounds(config: TrainConfig) -> int:
    return math.ceil(config.fake_warmup / config.fake_updates)


REGRESS_UPDATES = 64  # of a round of regression
USES = 8  # of each of its pairs


def regress_rounds(config: TrainConfig) -> int:
    return math.ceil(config.regress_steps / REGRESS_UPDATES)


def regressed(config: TrainConfig, round_: int) -> int:
    """Updates of regression that were made before a round."""
    return min(config.regress_steps, round_ * REGRESS_UPDATES)


def opening_rounds(config: TrainConfig) -> int:
    """Rounds before the first that ends with a step."""
    return regress_rounds(config) + warmup_rounds(config)


def active_layers(config: TrainConfig, nfe: int, step: int) -> list[int]:
    """The layers of nfe that train at a step: all, or in sequential order one at a time from the
    top, an equal share of steps each.
    """
    if config.order == "joint":
        return list(range(1, nfe + 1))
    return [nfe - min(nfe - 1, step * nfe // max(1, config.steps))]


def pool_size(config: TrainConfig, layer_count: int) -> int:
    """Samples to roll out in a round, so that no mean is used more than about twice. A multiple of
    8, to split evenly.
    """
    uses = config.batch_size * (config.fake_updates + 1)
    return 8 * math.ceil(uses / (2 * layer_count) / 8)


def pick(uses: Tensor, count: int, layers: list[int]) -> tuple[Tensor, Tensor]:
    """Which sample and layer the n-th use of a pool takes: every pair once before any is taken
    twice.

    uses     [B]  0, 1, 2, ... over the round
    count         samples of the pool
    Returns  [B], [B]  sample's index and layer k
    """
    sample = uses % count
    return sample, torch.tensor(layers)[(sample + uses // count) % len(layers)]


@dataclass(frozen=True)
class Pool:
    """Layers of a roll-out of N samples down a chain: x, offset and mean [K, N, ...], layer k at
    k - 1 (zero where not visited); labels [N] or None. first_row is that of layer 1 in a fake score
    that is told.
    """

    chain: Chain
    first_row: int
    x: Tensor
    offset: Tensor
    mean: Tensor
    labels: Tensor | None


def draw_labels(players: Players, count: int, draw: torch.Generator, share: Share) -> Tensor | None:
    """This process's part of `count` labels, None for a teacher without classes."""
    if players.label_count is None:
        return None
    labels = torch.randint(players.label_count, (count,), generator=draw)
    return labels[share.rank :: share.world].to(players.log_scale.device)


@torch.no_grad()
def roll_out(
    players: Players, config: TrainConfig, round_: int, layers: list[int], share: Share
) -> Pool:
    """Walk this process's samples of the round's pool down to the lowest layer that trains."""
    device, chain = players.log_scale.device, players.chain(round_)
    count = pool_size(config, len(layers))
    mine = slice(share.rank, None, share.world)
    draw = rng(config.seed, round_, "roll-out")
    x = torch.randn(count, *players.shape, generator=draw)[mine].to(device)
    noise = [
        torch.randn(count, *players.shape, generator=draw)[mine].to(device)
        for _ in range(chain.nfe - 1)
    ]
    labels = draw_labels(players, count, draw, share)
    stacks = [torch.zeros(chain.nfe, *x.shape, device=device) for _ in range(3)]
    for visit in walk(players.student_eps, chain, x, noise, players.log_scale, labels):
        for stack, part in zip(stacks, (visit.x, visit.offset, visit.mean), strict=True):
            stack[visit.k - 1] = part
        if visit.k == min(layers):
            break
    first_row = sum(c.nfe for c in players.chains[: round_ % len(players.chains)])
    return Pool(chain, first_row, *stacks, labels)


@dataclass(frozen=True)
class Batch:
    """A process's part of a batch: which sample (of its own pool) and layer, where observed, with
    which noise. All [B, ...].
    """

    sample: Tensor
    layer: Tensor
    tau: Tensor
    noise: Tensor

    def parts(self, count: int) -> list[Batch]:
        split = [
            torch.tensor_split(t, count) for t in (self.sample, self.layer, self.tau, self.noise)
        ]
        return [Batch(*part) for part in zip(*split, strict=True) if len(part[0])]


def draw_batch(
    players: Players,
    config: TrainConfig,
    round_: int,
    purpose: str,
    update: int,
    layers: list[int],
    share: Share,
) -> Batch:
    """The update-th batch of a round."""
    device, size, chain = players.log_scale.device, config.batch_size, players.chain(round_)
    index, layer = pick(torch.arange(size) + update * size, pool_size(config, len(layers)), layers)
    draw = rng(config.seed, round_, purpose, update)
    place = torch.rand(size, generator=draw) ** config.level_power
    tau = draw_levels(chain, layer, place, config.levels, players.table)
    noise = torch.randn(size, *players.shape, generator=draw)
    mine = slice(share.rank, None, share.world)
    parts = (dealt(index, share), layer[mine], tau[mine], noise[mine])
    return Batch(*(t.to(device) for t in parts))


def dealt(index: Tensor, share: Share) -> Tensor:
    """Indices into the global pool [B] as this process's part of them, into its own part of the
    pool: pool and batch are dealt out alike.
    """
    return torch.div(index[share.rank :: share.world], share.world, rounding_mode="floor")


def observe_batch(
    players: Players, chain: Chain, batch: Batch, mean: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """x and layer_eps [B, ...] of a batch whose layers have these means, and alpha_bar [B] of its
    levels, none below the layers' own.
    """
    std = std_of(chain, batch.layer, players.log_scale).to(mean.dtype)
    start = chain.alpha_bar.to(mean.device)[batch.layer - 1]
    alpha_bar = torch.minimum(players.table.to(mean.device)[batch.tau], start)
    return *observe(mean, std, start, alpha_bar, batch.noise), alpha_bar


def fake_labels(players: Players, pool: Pool, batch: Batch, labels: Tensor | None) -> Tensor | None:
    """What the fake score hears as labels [B]: those of the samples or, if told, the rows of its
    weights, one for each (chain, layer, label) in this order.
    """
    if not players.told:
        return labels
    row = pool.first_row + batch.layer - 1
    return row if labels is None else row * players.label_count + labels


def update(optimizer: torch.optim.Optimizer, clip: float, share: Share) -> float:
    """Average gradients over processes, clip, step. Returns the gradient norm, not finite if any
    gradient is not: then no step.
    """
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    gradients = [p.grad for p in trained]
    if share.world > 1:
        flat = share.mean(torch.cat([g.flatten() for g in gradients]))
        for gradient, part in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))
    norm = torch.nn.utils.get_total_norm(gradients)
    if torch.isfinite(norm):
        torch.nn.utils.clip_grads_with_norm_(trained, clip, norm)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm.item()


def fake_score_update(
    players: Players, config: TrainConfig, pool: Pool, batch: Batch, share: Share
) -> tuple[float, float]:
    """One update of the fake score on means of the pool with fresh noise. Returns this process's
    loss and the gradient norm.
    """
    players.fake_score.requires_grad_(True)
    total, size = 0.0, len(batch.tau)
    for part in batch.parts(config.accumulate):
        with torch.no_grad():
            x, layer_eps, alpha_bar = observe_batch(
                players, pool.chain, part, pool.mean[part.layer - 1, part.sample]
            )
        labels = None if pool.labels is None else pool.labels[part.sample]
        heard = fake_labels(players, pool, part, labels)
        f_eps = players.fake_eps(x, part.tau, heard, alpha_bar)
        loss = fake_score_loss(f_eps, layer_eps, level_weight(config.fake_weight, alpha_bar)).sum()
        loss = loss / (size * x[0].numel())
        loss.backward()
        total += loss.item()
    return total, update(players.fake_optimizer, config.clip, share)


def student_update(
    players: Players, config: TrainConfig, pool: Pool, batch: Batch, step: int, share: Share
) -> tuple[float, Tensor, float]:
    """One update of the student, layers re-run from the pool's states. Returns loss, divergence
    estimates [B], gradient norm.
    """
    players.fake_score.requires_grad_(False)
    for group in players.student_optimizer.param_groups:
        group["lr"], group["betas"] = student_rate(config, step), (config.student_beta1, 0.999)
    chain, total, bounds = pool.chain, 0.0, []
    for part in batch.parts(config.accumulate):
        device = part.noise.device
        labels = None if pool.labels is None else pool.labels[part.sample]
        x_k, offset = (t[part.layer - 1, part.sample] for t in (pool.x, pool.offset))
        time, alpha_bar_k = (
            t.to(device)[part.layer].float() for t in (chain.time, chain.alpha_bar)
        )
        eps = players.student_eps(x_k, time, labels, alpha_bar_k)
        mean = offset + over(chain.gain.to(device)[part.layer], eps) * eps
        x, layer_eps, alpha_bar = observe_batch(players, chain, part, mean)
        heard = fake_labels(players, pool, part, labels)
        with torch.set_grad_enabled(config.objective == "score-matching"):
            f_eps = players.fake_eps(x, part.tau, heard, alpha_bar)
            teacher_eps = players.teacher_eps(x, part.tau, labels, alpha_bar)
        x0 = eps_to_x0(teacher_eps, x, alpha_bar) if config.weight == "sid" else None
        weight = level_weight(config.weight, alpha_bar, mean, x0)
        if config.objective == "score-matching":
            losses = score_matching_loss(f_eps, teacher_eps, layer_eps, weight, config.a)
        else:
            losses = reverse_kl_loss(x, f_eps, teacher_eps, weight)
        loss = losses.sum() / (len(batch.tau) * x[0].numel())
        loss.backward()
        total += loss.item()
        bounds.append(divergence_bound(f_eps.detach(), teacher_eps.detach(), layer_eps.detach()))
    return total, torch.cat(bounds), update(players.student_optimizer, config.clip, share)


@torch.no_grad()
def ema_update(
    averages: Iterable[Tensor], tensors: Iterable[Tensor], decay: float, step: int
) -> None:
    """Move averages towards their tensors, in place, the less the later."""
    decay = min(decay, (1 + step) / (10 + step))
    for average, tensor in zip(averages, tensors, strict=True):
        average.lerp_(tensor, 1 - decay)


def average_student(players: Players, config: TrainConfig, step: int) -> None:
    averages = [*players.ema.parameters(), players.ema_scale]
    ema_update(averages, [*players.student.parameters(), players.log_scale], config.ema, step)


def play_round(
    players: Players, config: TrainConfig, round_: int, share: Share = Share()
) -> dict[str, float]:
    """One round, in place. Returns its measurements, by name: averages over its updates and over
    processes, and the calls of its chain.
    """
    chain, regressing = players.chain(round_), regress_rounds(config)
    if round_ < regressing:
        return regress(players, config, round_, share) | {"nfe": chain.nfe}
    if round_ == regressing:
        players.student_optimizer.state.clear()  # of another loss
    step = round_ - opening_rounds(config)
    layers = active_layers(config, chain.nfe, max(0, step))
    pool = roll_out(players, config, round_, layers, share)
    fake_losses, norms = [], []
    for i in range(config.fake_updates):
        batch = draw_batch(players, config, round_, "fake score", i, layers, share)
        loss, norm = fake_score_update(players, config, pool, batch, share)
        fake_losses.append(loss)
        norms.append(norm)
    measured = {"fake_loss": sum(fake_losses) / len(fake_losses), "fake_norm": max(norms)}
    if step >= 0:
        batch = draw_batch(players, config, round_, "student", 0, layers, share)
        loss, bounds, norm = student_update(players, config, pool, batch, step, share)
        average_student(players, config, step)
        measured |= {"loss": loss, "divergence": bounds.mean().item(), "norm": norm}
    return averaged(measured, players, share) | {"nfe": chain.nfe}


def averaged(measured: dict[str, float], players: Players, share: Share) -> dict[str, float]:
    """Measurements averaged over processes."""
    if share.world == 1:
        return measured
    values = share.mean(torch.tensor(list(measured.values()), device=players.log_scale.device))
    return dict(zip(measured, values.tolist(), strict=True))


# ---- regression ----------------------------------------------------------------------------------


@torch.no_grad()
def walk_paths(
    players: Players, config: TrainConfig, round_: int, updates: int, share: Share
) -> tuple[Tensor, Tensor, Tensor | None]:
    """This process's paths of a round of regression: x_k of every layer [K, N, ...], where the
    paths end [N, ...], and labels [N] or None.
    """
    path = players.paths[round_ % len(players.chains)]
    device, mine = players.log_scale.device, slice(share.rank, None, share.world)
    draw = rng(config.seed, round_, "paths")
    count = path_count(config, updates, len(path.places))
    noise = torch.randn(count, *players.shape, generator=draw)[mine].to(device)
    labels = draw_labels(players, count, draw, share)
    states, ends = [], []
    for part in torch.arange(len(noise)).split(config.batch_size):
        heard = None if labels is None else labels[part]
        unused = torch.zeros_like(players.log_scale)
        visits = list(walk(players.teacher_eps, path.chain, noise[part], None, unused, heard))
        states.append(torch.stack([visits[-place].x for place in path.places]))
        ends.append(visits[-1].mean)
    return torch.cat(states, 1), torch.cat(ends), labels


def path_count(config: TrainConfig, updates: int, layer_count: int) -> int:
    """Paths of a round of regression, a multiple of 8."""
    return 8 * math.ceil(updates * config.batch_size / (USES * layer_count) / 8)


def regress(players: Players, config: TrainConfig, round_: int, share: Share) -> dict[str, float]:
    """A round of regression: paths of the teacher, and updates that teach every layer's x0 their
    ends.
    """
    chain, size = players.chain(round_), config.batch_size
    done = regressed(config, round_)
    updates = regressed(config, round_ + 1) - done
    paths = walk_paths(players, config, round_, updates, share)
    count, layers = path_count(config, updates, chain.nfe), list(range(1, chain.nfe + 1))
    mine, losses = slice(share.rank, None, share.world), []
    for i in range(updates):
        index, layer = pick(torch.arange(size) + i * size, count, layers)
        ramp = min(rise(config, done + i), cosine(done + i, config.regress_steps))
        for group in players.student_optimizer.param_groups:
            group["lr"], group["betas"] = config.regress_rate * ramp, (0.9, 0.999)
        index, layer = dealt(index, share), layer[mine]
        losses.append(regression_update(players, config, chain, paths, index, layer, share))
        average_student(players, config, done + i)
    return averaged({"regression_loss": sum(losses) / len(losses)}, players, share)


def regression_update(
    players: Players,
    config: TrainConfig,
    chain: Chain,
    paths: tuple[Tensor, Tensor, Tensor | None],
    index: Tensor,
    layer: Tensor,
    share: Share,
) -> float:
    """One update of the student on `walk_paths`' paths of these indices, begun at these layers.
    Returns this process's loss, not finite if a gradient is not.
    """
    (x, ends, labels), total = paths, 0.0
    index, layer = index.to(x.device), layer.to(x.device)
    for which, k in zip(
        index.tensor_split(config.accumulate), layer.tensor_split(config.accumulate), strict=True
    ):
        if not len(which):
            continue
        x_k, own = x[k - 1, which], None if labels is None else labels[which]
        time, alpha_bar = (t.to(x.device)[k].float() for t in (chain.time, chain.alpha_bar))
        x0 = eps_to_x0(players.student_eps(x_k, time, own, alpha_bar), x_k, alpha_bar)
        loss = regression_loss(x0, ends[which]).sum() / (len(index) * x[0, 0].numel())
        loss.backward()
        total += loss.item()
    norm = update(players.student_optimizer, config.clip, share)
    return total if math.isfinite(norm) else norm
