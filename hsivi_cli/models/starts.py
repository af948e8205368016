"""The chains that a training begins with: what --nfe, --grid, --start and --noise-share describe,
on a teacher's schedule.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..config import MANY, TrainConfig
from ..errors import HsiviError
from ..method import schedule
from ..method.chain import (
    Chain,
    draw_levels,
    draw_noise,
    join_noise,
    sample,
    with_noise_share,
)
from ..method.fit import fit_coefficients
from ..method.solvers import ddim_chain
from ..method.steps import TRUSTED, moved, rng
from .schedules import END
from .shares import OWN_NOISE, parse_share
from .spacings import solver, solver_names, unipc_at
from .student import load_chains, read_info
from .teacher import Teacher

Judge = Callable[[Chain], float]  # of a chain: the less the better
PAIRS, FINALISTS = 20, 6  # noises by which --start auto looks at all starts; how many it compares
BEARABLE = 3.0  # times as far as without noise, by the judge, a start may be with it
FIT_PAIRS = 512  # noises on which --fit-steps fits
TEACHER_CALLS = 50  # of UniPC, whose images --fit-steps fits to
WIDE = 1.03  # the sd of x_K that --top-sd auto gives teachers of x0 and v
GAP_CALLS = 20  # of UniPC, by which starts are told apart


def find_chains(
    config: TrainConfig,
    teacher: Teacher,
    earlier: Path | None,
    once: Callable[[Callable], object],
    judge: Judge | None = None,
    seen: Callable[[], None] = lambda: None,
) -> tuple[dict[int, str], list[Chain]]:
    """What --start auto chose by budget (nothing for other starts), and the budgets' chains: as an
    earlier part of the run has them, or made now.

    earlier  the folder of that part
    once     gives every process what a function gives on the main one, for what takes long
    judge, seen  as in `choose_starts`
    """
    if earlier:
        stored = read_info(earlier).get("starts") or {}
        starts = {int(nfe): name for nfe, name in stored.items()}
    else:
        starts = once(lambda: choose_starts(config, teacher, judge, seen))
    if not config.fit_steps:
        return starts, make_chains(config, teacher, starts)
    if earlier and (earlier / "chain.safetensors").exists():
        chains, _ = load_chains(earlier)
        return starts, [chains[nfe] for nfe in config.budgets]
    return starts, once(lambda: make_chains(config, teacher, starts))


def make_chains(config: TrainConfig, teacher: Teacher, starts: dict[int, str]) -> list[Chain]:
    """The chains of a configuration's budgets.

    starts  by budget, what --start auto chose
    """
    made = [make_chain(config, nfe, teacher, starts.get(nfe)) for nfe in config.budgets]
    return fitted(config, teacher, made) if config.fit_steps else made


def make_chain(config: TrainConfig, nfe: int, teacher: Teacher, start: str | None = None) -> Chain:
    """The chain of one budget, before any --fit-steps.

    start  what --start auto chose, in place of the configuration's own
    """
    start = start or config.start
    chain = bare_chain(config, nfe, teacher, start)
    if chain.s0.any() and config.noise_share != OWN_NOISE:
        raise HsiviError(
            f"--start {start} has noise of its own: give --noise-share {OWN_NOISE} beside it"
        )
    share = parse_share(config.noise_share, chain)
    if start != "ddim" and min(share) >= 1:
        raise HsiviError(
            f"--start {start} goes with a --noise-share below 1: where layers keep only x0, "
            "training begins at ddim's"
        )
    if config.fit_steps and max(share) >= 1:
        raise HsiviError(
            "--fit-steps fits how much of the states and predictions a layer keeps, and at "
            "--noise-share 1 it keeps only x0: give shares below 1"
        )
    if config.regress_steps and min(share) < 1:
        raise HsiviError(
            "--regress-steps teaches calls the ends of paths, which is what layers that keep only "
            "x0 draw: give --noise-share 1"
        )
    chain = with_noise_share(chain, share)
    if config.levels == "own" and not all(chain.s0[1:] > 0):
        raise HsiviError(
            "--levels own needs noise in every layer (--noise-share above 0, and a chain that "
            "does not end at clean data)"
        )
    if k := unjudged_layer(config, chain, teacher.table):
        low, high = (int(t) for t in chain.time[k - 1 : k + 1])
        raise HsiviError(
            f"layer {k}, from time {high} to {low}, has no noise of its own and no level between "
            "to be judged at: give it a --noise-share above 0, or times further apart"
        )
    if config.log_scale != "frozen" and min(share) >= 1:
        raise HsiviError(
            "--log-scale must be frozen at --noise-share 1: such a layer's noise is the level's own"
        )
    return chain


def unjudged_layer(config: TrainConfig, chain: Chain, table: Tensor) -> int | None:
    """The first layer without noise whose lowest level of judgement is its own: there its
    conditional is a point, which has no score.
    """
    layers = torch.arange(1, chain.nfe + 1)
    lowest = draw_levels(chain, layers, torch.zeros(chain.nfe), config.levels, table)
    bare = (chain.s0[1:] == 0) & (table[lowest] >= chain.alpha_bar[:-1])
    return int(layers[bare][0]) if bare.any() else None


def bare_chain(config: TrainConfig, nfe: int, teacher: Teacher, start: str) -> Chain:
    """A start before any noise: ddim over --grid, or a solver over its own times."""
    if start != "ddim":
        chain = solver(start, nfe, teacher.scheduler, teacher.table)
        if not (chain.time.diff() > 0).all():
            raise HsiviError(
                f"--start {start} stays at a level for two calls, and a layer between equal "
                "levels has nowhere to be judged: start from another solver"
            )
        signal = chain.alpha_bar.sqrt()
        kept = chain.cx * signal + chain.c0.sum(1)  # of clean data, at rest
        if not torch.allclose(kept[1:], signal[:-1], rtol=1e-3):
            raise HsiviError(
                f"--start {start} steps to other levels than it calls the network at: start from "
                "another solver"
            )
        return chain
    times = schedule.grid(config.grid, nfe, teacher.table, config.grid_top)
    return ddim_chain(times, teacher.table[times])


def widened(config: TrainConfig, teacher: Teacher, made: list[Chain]) -> list[Chain]:
    """The chains with the sd of x_K that a student draws from, which is 1 as they are made.

    By --top-sd auto it is above the 1 of training, in which layers narrow what they draw; but not
    where a student is moved further than the default moves it, for it has left its teacher by then,
    nor where a network predicts eps: there an excess of x_K comes into its x0 divided by
    sqrt(alpha_bar), and more teachers lose than gain.
    """
    sd = config.own_top_sd
    if sd is None:
        kept = teacher.prediction == "epsilon" or moved(config, config.steps) > TRUSTED
        sd = 1.0 if kept else WIDE
    each = (torch.tensor(sd, dtype=torch.float64) for _ in made)  # safetensors shares none
    return [replace(chain, top_sd=own) for chain, own in zip(made, each, strict=True)]


def choose_starts(
    config: TrainConfig,
    teacher: Teacher,
    judge: Judge | None = None,
    seen: Callable[[], None] = lambda: None,
) -> dict[int, str]:
    """--start auto's choice by budget; empty for any other start. Of all starts those are compared
    whose images of a few noises are nearest to the teacher's own of the same noises, from every
    level that some begin at: a gap between pairs does not see what a chain misses that begins where
    there is signal yet. From MANY calls up, where the gap counts, those are left out that begin
    where images show, if others do not.

    judge  whose least start is then chosen, of their images as a set, from MANY calls up its least
           product with the gap, and passing over what does not bear the noise of its share, as
           solvers of high order may not; None: the least gap
    seen   called after every look at a chain without noise
    Where every layer keeps only x0 the choice is ddim, and nothing is compared.
    """
    if config.start != "auto":
        return {}
    found, gap = {}, teacher_gap(teacher, PAIRS)
    for nfe in config.budgets:
        plain = bare_chain(config, nfe, teacher, "ddim")
        if min(parse_share(config.noise_share, plain)) >= 1:
            found[nfe] = "ddim"
        else:
            chains = dict(bare_chains(config, nfe, teacher))
            found[nfe] = choose_start(config, chains, gap, judge, seen)
    return found


def choose_start(
    config: TrainConfig,
    chains: dict[str, Chain],
    gap: Judge,
    judge: Judge | None,
    seen: Callable[[], None],
) -> str:
    """The choice of `choose_starts` among one budget's chains."""
    nfe = next(iter(chains.values())).nfe

    def looked(look: Judge, names: list[str]) -> dict[str, float]:
        found = {}
        for name in names:
            found[name] = look(chains[name])
            seen()
        found = {name: far for name, far in found.items() if math.isfinite(far)}
        if not found:
            raise HsiviError(
                f"no start of {nfe} calls draws finite images: the teacher is at fault"
            )
        return found

    names, many = list(chains), nfe >= MANY
    if many:
        names = [name for name in names if chains[name].alpha_bar[-1] <= END] or names
    gaps = looked(gap, names)
    best = sorted(gaps, key=gaps.get)
    if not judge:
        return best[0]
    sets = looked(judge, finalists(best, chains))
    best = sorted(sets, key=lambda name: sets[name] * (gaps[name] if many else 1.0))
    for name in best:
        share = parse_share(config.noise_share, chains[name])
        if judge(with_noise_share(chains[name], share)) <= BEARABLE * sets[name]:
            return name
    return best[0]


def finalists(best: list[str], chains: dict[str, Chain]) -> list[str]:
    """FINALISTS of chains sorted by their gaps: the best from every top level, then the second."""
    tops, places = Counter(), {}
    for name in best:
        top = round(chains[name].time[-1].item())
        places[name] = tops[top]
        tops[top] += 1
    return sorted(best, key=places.get)[:FINALISTS]


def bare_chains(config: TrainConfig, nfe: int, teacher: Teacher) -> Iterator[tuple[str, Chain]]:
    """Every start that there is at this budget, by name, before any noise."""
    for name in ("ddim", *solver_names()):
        with contextlib.suppress(HsiviError):  # a spacing that this many calls do not have
            chain = bare_chain(config, nfe, teacher, name)
            if not chain.s0.any():  # nothing that adds noise is nearest noise for noise
                yield name, chain


def teacher_gap(teacher: Teacher, count: int) -> Judge:
    """The mean squared distance of a chain's images to the teacher's own, noise for noise."""
    wanted = teacher_images(teacher, count, GAP_CALLS)
    return lambda chain: (images(teacher, chain, count) - wanted(chain)).square().mean().item()


def teacher_images(
    teacher: Teacher, count: int, calls: int = TEACHER_CALLS
) -> Callable[[Chain], Tensor]:
    """The teacher's own images [count, C, H, W], as a function of a chain: those of many calls from
    the level where the chain begins, of the same noises.

    A chain that begins below full noise takes the same noise for a state that full noise would not
    lead to; from its own level on it can be right. Each level is drawn from once.
    """
    drawn = cache(lambda top: images(teacher, truth_chain(teacher, top, calls), count))
    return lambda chain: drawn(round(chain.time[-1].item()))


def truth_chain(teacher: Teacher, top: int, most: int = TEACHER_CALLS) -> Chain:
    """The many calls, from a time down, whose images stand for the teacher's own."""
    calls = min(most, max(1, top // 2))
    times = [math.ceil(top * i / calls) for i in range(1, calls + 1)]
    return unipc_at(times, teacher.scheduler, teacher.table)


def noises(teacher: Teacher, count: int) -> tuple[Tensor, Tensor | None]:
    """x_K [count, C, H, W] and labels [count] or None, always the same ones."""
    draw = torch.Generator().manual_seed(0)
    drawn = draw_noise(draw, 1, teacher.shape, teacher.label_count, count)
    return join_noise([drawn], teacher.unet.device)[:2]


@torch.no_grad()
def images(teacher: Teacher, chain: Chain, count: int) -> Tensor:
    """The images [count, C, H, W] of a chain over the teacher, of the same noises."""
    x, labels = noises(teacher, count)
    network, draw, size = teacher.network(clip=teacher.clip), torch.Generator().manual_seed(1), 64
    scale, layers = torch.zeros(1, 1, 1, 1, device=x.device), chain.nfe if chain.s0.any() else 1
    labels = [None] * len(x) if labels is None else labels.split(size)
    drawn = []
    for a, b in zip(x.split(size), labels, strict=False):
        noise = [torch.randn(a.shape, generator=draw).to(a.device) for _ in range(1, layers)]
        drawn.append(sample(network, chain, a, noise, scale, b))
    return torch.cat(drawn)


def fitted(config: TrainConfig, teacher: Teacher, made: list[Chain]) -> list[Chain]:
    """--fit-steps: the chains with the coefficients and told times that draw the teacher's own
    images best.
    """
    x, labels = noises(teacher, FIT_PAIRS)
    wanted, network, found = (
        teacher_images(teacher, FIT_PAIRS),
        teacher.network(clip=teacher.clip),
        [],
    )
    for chain in made:
        draw = rng(config.seed, "fit", chain.nfe)
        chain = fit_coefficients(network, chain, x, wanted(chain), labels, config.fit_steps, draw)
        if not (chain.time.diff() > 0).all() or not chain.ce.isfinite().all():
            raise HsiviError(
                f"--fit-steps {config.fit_steps} led to times out of order at {chain.nfe} calls: "
                "give another --start or fewer --fit-steps"
            )
        found.append(chain)
    return found
