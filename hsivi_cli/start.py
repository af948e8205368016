"""The chains that a training begins with: what --nfe, --grid, --start and --noise-share describe,
on a teacher's schedule.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import chain as chains
from . import schedule
from .chain import Chain, ddim_chain, eta_shares, with_noise_share
from .config import HsiviError, TrainConfig
from .teacher import Teacher, solver, solver_names

PAIRS = 100  # noises by which `nearest_start` compares
JUDGE = ("dpm++2-linspace", 50)  # whose images stand for the teacher's own


def make_chains(config: TrainConfig, teacher: Teacher, starts: dict[int, str]) -> list[Chain]:
    """The chains of a configuration's budgets.

    starts  by budget, what --start auto chose
    """
    return [make_chain(config, nfe, teacher, starts.get(nfe)) for nfe in config.budgets]


def make_chain(config: TrainConfig, nfe: int, teacher: Teacher, start: str | None = None) -> Chain:
    """The chain of one budget.

    start  what --start auto chose, in place of the configuration's own
    """
    start = start or config.start
    chain = bare_chain(config, nfe, teacher, start)
    share = parse_share(config.noise_share, chain)
    if start != "ddim" and min(share) >= 1:
        raise HsiviError(
            f"--start {start} says nothing at --noise-share 1, which keeps only x0: give a "
            "share below 1"
        )
    chain = with_noise_share(chain, share)
    if config.levels == "own" and not all(chain.s0[1:] > 0):
        raise HsiviError(
            "--levels own needs noise in every layer (--noise-share above 0, and a chain that "
            "does not end at clean data)"
        )
    if config.log_scale != "frozen" and min(share) >= 1:
        raise HsiviError(
            "--log-scale must be frozen at --noise-share 1: such a layer's noise is the level's own"
        )
    return chain


def bare_chain(config: TrainConfig, nfe: int, teacher: Teacher, start: str) -> Chain:
    """A start before any noise: ddim over --grid, or a solver over its own times."""
    if start != "ddim":
        chain = solver(start, nfe, teacher.scheduler, teacher.table)
        if not (chain.time.diff() > 0).all():
            raise HsiviError(
                f"--start {start} stays at a level for two calls, and a layer between equal "
                "levels has nowhere to be judged: start from another solver"
            )
        return chain
    times = schedule.grid(config.grid, nfe, teacher.table, config.grid_top)
    return ddim_chain(times, teacher.table[times])


def parse_share(text: str, chain: Chain) -> list[float]:
    """--noise-share: "0.5", "0.2,0.5,1" (layers 1..K) or "eta:0.2"."""
    try:
        if text.startswith("eta:"):
            return eta_shares(chain.alpha_bar, float(text[4:]))
        shares = [float(word) for word in text.split(",")]
    except ValueError:
        raise HsiviError(
            f"--noise-share {text!r} is neither numbers such as 0.5 or 0.2,0.5,1 nor eta:0.2"
        ) from None
    if len(shares) not in (1, chain.nfe):
        raise HsiviError(
            f"--noise-share has {len(shares)} numbers; give one, or {chain.nfe}, from layer 1 up"
        )
    return shares * (chain.nfe if len(shares) == 1 else 1)


# ---- --start auto --------------------------------------------------------------------------------


def choose_starts(config: TrainConfig, teacher: Teacher) -> dict[int, str]:
    """--start auto's choice by budget; empty for any other start.

    Where every layer keeps only x0 all starts are one, so ddim.
    """
    if config.start != "auto":
        return {}
    found, truth = {}, None
    for nfe in config.budgets:
        plain = bare_chain(config, nfe, teacher, "ddim")
        if min(parse_share(config.noise_share, plain)) >= 1:
            found[nfe] = "ddim"
            continue
        if truth is None:
            name, calls = JUDGE
            calls = min(calls, len(teacher.table) // 2)
            truth = images(teacher, solver(name, calls, teacher.scheduler, teacher.table))
        found[nfe] = min(gaps(config, nfe, teacher, truth).items(), key=lambda pair: pair[1])[0]
    return found


def gaps(config: TrainConfig, nfe: int, teacher: Teacher, truth: Tensor) -> dict[str, float]:
    """By start, the mean squared distance of its images to `truth`, noise for noise."""
    found = {}
    for name in ("ddim", *solver_names()):
        try:
            chain = bare_chain(config, nfe, teacher, name)
        except HsiviError:  # a spacing that this many calls do not have
            continue
        found[name] = (images(teacher, chain) - truth).square().mean().item()
    return found


@torch.inference_mode()
def images(teacher: Teacher, chain: Chain) -> Tensor:
    """The images [PAIRS, C, H, W] of a chain without noise over the teacher, of the same noises."""
    device = teacher.unet.device
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(PAIRS, *teacher.shape, generator=draw).to(device)
    labels = None
    if teacher.label_count is not None:
        labels = torch.randint(teacher.label_count, (PAIRS,), generator=draw).to(device)
    scale = torch.zeros(1, *[1] * len(teacher.shape), device=device)
    return chains.sample(teacher.network(), chain, x, None, scale, labels)
