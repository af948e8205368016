"""One round of training, over any networks and data: a roll-out, fake-score updates, and a student
update.

Between two student updates the student does not change, so one roll-out gives the states and means
of all layers, and every fake-score update needs only fresh noise on means it has. A *round* is a
roll-out with its fake-score updates; the first rounds warm the fake score up, every later one ends
with a *step*, one student update. In sequential order every layer's first step has a warm-up before
it. Where one student serves several budgets of calls, each with a
chain of its own, rounds take the chains in turn.

Before all of these the student may *regress*, in rounds of its own: the teacher walks paths through
the student's levels, and every call learns where the path from its state ends, as in DMD's
regression on the teacher's own images [Yin et al. 2023]. No fake score takes part.

Where real images are given, the fake score's encoder is a *discriminator* too [SiDA, Zhou et al.
2024]: it learns beside the score to tell real images at a draw's level and noise from the draw, and
after some steps on the scores alone the student also learns to pass for real.

A *layer-conditioned* fake score has a row of weights for every layer of every chain, and in place
of the labels hears which row: so it can hold a score for each of them at one level. One that is
shared learns their mixture there.

Everything random is a function of (seed, round, purpose), drawn on the CPU for the whole global
batch; a process takes its shard of it. So a run neither depends on how many processes there are nor
on having been interrupted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import TrainConfig
from .chain import Chain, observe, std_of, walk
from .draws import Batch, Draws, Start, draw_round, draw_start
from .losses import (
    adversarial_loss,
    apart,
    discriminator_loss,
    divergence_bound,
    fake_score_loss,
    gap_weight,
    level_weight,
    output_weight,
    reverse_kl_loss,
    score_matching_loss,
)
from .networks import Networks, average_student
from .regress import regress, regress_rounds
from .schedule import add_noise, eps_to_x0, over
from .steps import (
    active_layers,
    joins,
    later_warmups,
    set_rate,
    student_rate,
    update,
    warmup_rounds,
)


def opening_rounds(config: TrainConfig) -> int:
    """Rounds before the first that ends with a step."""
    return regress_rounds(config) + warmup_rounds(config)


@dataclass(frozen=True)
class Pool:
    """Layers of a roll-out of N samples down a chain: x, offset and mean [K, N, ...], layer k at
    k - 1 (zero where not visited); labels [N] or None. first_row is that of layer 1 in a fake score
    that is conditioned on layers.
    """

    chain: Chain
    first_row: int
    x: Tensor
    offset: Tensor
    mean: Tensor
    labels: Tensor | None


@torch.no_grad()
def roll_out(
    networks: Networks,
    config: TrainConfig,
    round_: int,
    layers: list[int],
    start: Start | None = None,
) -> Pool:
    """Walk this process's shard of a round's pool down to the lowest layer that trains, in the
    parts that an update is split into.

    start  what `draw_start` draws, if that lies on the networks' device already
    """
    networks.train_student(False)  # one compiled graph is then that of the frozen networks too
    networks.student_low.renew()
    chain = networks.chain(round_)
    x, noise, labels = start or draw_start(networks, config, round_, layers)
    stacks = [x.new_zeros(chain.nfe, *x.shape) for _ in range(3)]
    for part in networks.parts(len(x), config.accumulate):
        given = [networks.filled(t[part]) for t in (x, *noise)]
        own = None if labels is None else networks.filled(labels[part])
        for visit in walk(
            networks.student_eps, chain, given[0], given[1:], networks.log_scale, own
        ):
            for stack, seen in zip(stacks, (visit.x, visit.offset, visit.mean), strict=True):
                stack[visit.k - 1, part] = seen[: len(part)]
            if visit.k == min(layers):
                break
    networks.train_student(True)
    first_row = sum(c.nfe for c in networks.chains[: round_ % len(networks.chains)])
    return Pool(networks.there(chain), first_row, *stacks, labels)


def observe_batch(
    networks: Networks, chain: Chain, batch: Batch, mean: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """x and layer_eps [B, ...] of a batch whose layers have these means, and alpha_bar [B] of its
    levels, none below the layers' own.
    """
    std = std_of(chain, batch.layer, networks.log_scale).to(mean.dtype)
    start = chain.alpha_bar[batch.layer - 1]
    alpha_bar = torch.minimum(networks.table_there[batch.tau], start)
    return *observe(mean, std, start, alpha_bar, batch.noise), alpha_bar


def fake_labels(
    networks: Networks, pool: Pool, batch: Batch, labels: Tensor | None
) -> Tensor | None:
    """What the fake score hears as labels [B]: those of the samples or, if it is conditioned on
    layers, the rows of its weights, one for each (chain, layer, label) in this order.
    """
    if not networks.layer_conditioned:
        return labels
    row = pool.first_row + batch.layer - 1
    return row if labels is None else row * networks.label_count + labels


def real_logits(networks: Networks, pool: Pool, batch: Batch, alpha_bar: Tensor) -> Tensor:
    """The logits [B, 1, h, w] of a batch's real images, at the levels and with the noises of what
    is drawn.
    """
    x0 = batch.real.to(batch.noise.dtype).div(127.5).sub(1)
    x = add_noise(x0, batch.noise, alpha_bar)
    heard = fake_labels(networks, pool, batch, batch.real_labels)
    return networks.discriminator.logits(x, batch.tau, heard)


def fake_score_update(
    networks: Networks, config: TrainConfig, pool: Pool, batch: Batch
) -> tuple[Tensor, Tensor, Tensor]:
    """One update of the fake score, and of the discriminator that its encoder is, on means of the
    pool with fresh noise. Returns this process's losses of either (0 without one) and the gradient
    norm.

    A level weighs alike in both, but for `output`, which turns units of eps: logits have none.
    """
    networks.train_fake_score(True)
    networks.fake_low.renew()
    discriminator, size = networks.discriminator, len(batch.tau)
    total = told = torch.zeros((), dtype=torch.float64, device=networks.device)
    for part in batch.parts(config.accumulate):
        with torch.no_grad():
            x, layer_eps, alpha_bar = observe_batch(
                networks, pool.chain, part, pool.mean[part.layer - 1, part.sample]
            )
        labels = None if pool.labels is None else pool.labels[part.sample]
        heard = fake_labels(networks, pool, part, labels)
        if discriminator:
            f_eps, drawn = discriminator.both(x, part.tau, heard, alpha_bar)
        else:
            f_eps = networks.fake_eps(x, part.tau, heard, alpha_bar)
        if config.fake_weight == "output":
            weight, own = output_weight(networks.prediction, alpha_bar), 1.0
        else:
            weight = own = level_weight(config.fake_weight, alpha_bar)
        loss = fake_score_loss(f_eps, layer_eps, weight).sum() / (size * x[0].numel())
        total = total + loss.detach().double()
        if discriminator:
            losses = discriminator_loss(real_logits(networks, pool, part, alpha_bar), drawn)
            told = told + losses.detach().double().sum() / size
            loss = loss + config.fake_adversarial * (own * losses).sum() / size
        loss.backward()
        networks.fake_low.collect()
    masked = discriminator is not None
    return total, told, update(networks.fake_optimizer, config.clip, networks.shard, masked)


def student_update(
    networks: Networks, config: TrainConfig, pool: Pool, batch: Batch, adversarial: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One update of the student, layers re-run from the pool's states. Returns the scores' loss,
    the adversarial one (0 where it takes no part), divergence estimates [B], gradient norm.

    adversarial  share of the discriminator's term in the loss; the scores' has the rest
    """
    through = config.objective == "score-matching"  # the gradient goes through both scores into x
    networks.train_fake_score(False)
    networks.student_low.renew()
    networks.fake_low.renew()
    chain, bounds = pool.chain, []
    total = passed = torch.zeros((), dtype=torch.float64, device=networks.device)
    for part in batch.parts(config.accumulate):
        labels = None if pool.labels is None else pool.labels[part.sample]
        x_k, offset = (t[part.layer - 1, part.sample] for t in (pool.x, pool.offset))
        time, alpha_bar_k = (t[part.layer].float() for t in (chain.time, chain.alpha_bar))
        eps = networks.student_eps(x_k, time, labels, alpha_bar_k)
        mean = offset + over(chain.gain[part.layer], eps) * eps
        x, layer_eps, alpha_bar = observe_batch(networks, chain, part, mean)
        heard = fake_labels(networks, pool, part, labels)
        with torch.set_grad_enabled(through):
            seen = x if through else x.detach()
            if not adversarial:
                f_eps = networks.fake_eps(seen, part.tau, heard, alpha_bar)
            teacher_eps = networks.teacher_eps(seen, part.tau, labels, alpha_bar)
        if adversarial:  # the gradient always goes through the encoder into x
            f_eps, logits = networks.discriminator.both(x, part.tau, heard, alpha_bar)
        clean = ()
        if config.weight == "sid":
            clean = eps_to_x0(eps, x_k, alpha_bar_k), eps_to_x0(teacher_eps, x, alpha_bar)
        if config.weight == "output":
            weight = gap_weight(networks.prediction, alpha_bar, linear=not through)
        else:
            weight = level_weight(config.weight, alpha_bar, *clean)
        if through:
            losses = score_matching_loss(f_eps, teacher_eps, layer_eps, weight, config.a)
        else:
            losses = reverse_kl_loss(x, f_eps, teacher_eps, weight)
        loss = losses.sum() / (len(batch.tau) * x[0].numel())
        total = total + loss.detach().double()
        if adversarial:
            losses = adversarial_loss(logits) / (apart(*clean) if clean else 1.0)
            term = losses.sum() / len(batch.tau)
            passed = passed + term.detach().double()
            loss = (1 - adversarial) * loss + adversarial * term
        loss.backward()
        networks.student_low.collect()
        bounds.append(divergence_bound(f_eps.detach(), teacher_eps.detach(), layer_eps.detach()))
    masked = networks.discriminator is not None
    norm = update(networks.student_optimizer, config.clip, networks.shard, masked)
    return total, passed, torch.cat(bounds), norm


def updates(
    networks: Networks, config: TrainConfig, round_: int, step: int, student: bool, draws: Draws
) -> Tensor:
    """A round's roll-out and its updates, which nothing interrupts: the draws lie on the networks'
    device, and nothing is read from there.

    Returns  the fake score's losses, the discriminator's, their gradient norms, and where the
             student is updated its losses, divergence and gradient norm, float64
    """
    for optimizer in (networks.fake_optimizer, networks.student_optimizer):
        optimizer.zero_grad()  # work that was broken off may have left gradients
    layers = active_layers(config, networks.chain(round_).nfe, step)
    pool = roll_out(networks, config, round_, layers, draws.start)
    fake = [
        fake_score_update(networks, config, pool, batch)
        for batch in draws.batches[: config.fake_updates]
    ]
    found = [value for kind in zip(*fake, strict=True) for value in kind]
    if student:
        share = config.adversarial if joins(config, step) else 0.0
        loss, term, bounds, norm = student_update(networks, config, pool, draws.batches[-1], share)
        found += [loss, term, bounds.mean(), norm]
    return torch.stack([value.double() for value in found])


def perform(
    networks: Networks, config: TrainConfig, round_: int, step: int, student: bool
) -> Tensor:
    """`updates` on a round's draws, in whatever way the networks' device does them best."""
    layers = active_layers(config, networks.chain(round_).nfe, step)
    opening = opening_rounds(config)

    def draw(number: int) -> Draws:  # of this round, or of the next one ahead of its time
        if number == round_:
            return draw_round(networks, config, round_, step, student)
        later = number - opening
        return draw_round(networks, config, number, max(0, later), later >= 0)

    def work(draws: Draws) -> Tensor:
        return updates(networks, config, round_, step, student, draws.to(networks.device))

    kind = (round_ % len(networks.chains), *layers, student, student and joins(config, step))
    return networks.perform(round_, kind, draw, work)


def play_round(networks: Networks, config: TrainConfig, round_: int) -> dict[str, float]:
    """One round, in place. Returns its measurements, by name: averages over its updates and over
    processes, and the calls of its chain.
    """
    chain, regressing = networks.chain(round_), regress_rounds(config)
    if round_ < regressing:
        return regress(networks, config, round_) | {"nfe": chain.nfe}
    if round_ == regressing:
        networks.student_optimizer.state.clear()  # of another loss
    student = round_ >= opening_rounds(config)
    step = max(0, round_ - opening_rounds(config))
    for warmup in later_warmups(config, step):
        perform(networks, config, warmup, step, student=False)
    set_rate(networks.student_optimizer, student_rate(config, step), config.student_beta1)
    # reading them is the one time in a round that the host waits for the device
    values, count = perform(networks, config, round_, step, student).tolist(), config.fake_updates
    losses, told, norms = (values[i * count : (i + 1) * count] for i in range(3))
    measured = {"fake_loss": sum(losses) / count, "fake_norm": max(norms)}
    if networks.discriminator:
        measured["discriminator_loss"] = sum(told) / count
    if student:
        average_student(networks, config, step)
        loss, term, divergence, norm = values[3 * count :]
        measured |= {"loss": loss, "divergence": divergence, "norm": norm}
        if joins(config, step):
            measured["adversarial_loss"] = term
    return networks.shard.averages(measured, networks.device) | {"nfe": chain.nfe}
