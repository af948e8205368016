"""The 25-Gaussian ground: a whole distillation in minutes, where the truth is known.

    python bench/gaussians25.py --nfe 5 --seeds 0,1,2
    python bench/gaussians25.py --nfe 1 --seeds 0,1,2 width=256
    python bench/gaussians25.py --nfe 5 objective=score-matching a=1 noise_share=0.6
    python bench/gaussians25.py --nfe 1,2,5

A 5 x 5 grid of Gaussians (spacing 0.7, sd 0.08) on the linear schedule of 1000 times. Its exact
score is the teacher. A small MLP is fitted to it, and student and fake score start from the fit;
from there on the code is the one that trains on images (`distill.play_round`), and any field of
TrainConfig can be set as key=value. --solvers measures training-free solvers instead, over the
exact score.

For each seed: sliced W1 (64 directions), Jensen-Shannon divergence in nats (60 x 60 bins over
[-2, 2]^2) and the share of samples within 3 sd of a mode, of 20,000 samples against 20,000 exact
ones. Seconds are CPU seconds of one thread, the fit included.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from types import SimpleNamespace

import torch
from common import append_rows, refuse_unknown, settings
from diffusers import DDPMScheduler
from torch import Tensor, nn

from hsivi_cli.config import TrainConfig
from hsivi_cli.density.targets import GaussianMixture, grid_mixture
from hsivi_cli.density.truth import jensen_shannon, sliced_w1
from hsivi_cli.errors import HsiviError
from hsivi_cli.method import chain as chains
from hsivi_cli.method import distill, schedule
from hsivi_cli.method.chain import Chain
from hsivi_cli.method.losses import dot
from hsivi_cli.method.lowered import Lowered
from hsivi_cli.method.networks import Networks, make_networks
from hsivi_cli.method.steps import rng
from hsivi_cli.models.networks import make_path
from hsivi_cli.models.spacings import solver, solver_names
from hsivi_cli.models.starts import make_chains as of_teacher

COUNT = 20_000
SD, SPACING = 0.08, 0.7
TARGET: GaussianMixture = grid_mixture(5, SPACING, SD)
SCHEDULER = DDPMScheduler(1000)
TABLE = SCHEDULER.alphas_cumprod.double()


# ---- metrics ----------------------------------------------------------------------------------


def near_share(x: Tensor) -> float:
    """The share of samples within 3 sd of a mode: 1 - exp(-4.5) = .989 for exact ones."""
    distance = torch.cdist(x.double(), TARGET.mean).min(1).values
    return (distance <= 3 * SD).double().mean().item()


def measure(x: Tensor) -> dict[str, float]:
    """The three metrics of samples [COUNT, 2]."""
    truth = TARGET.sample(len(x), rng(0, "truth"))
    return {"w1": sliced_w1(x, truth), "js": jensen_shannon(x, truth), "near": near_share(x)}


# ---- networks ---------------------------------------------------------------------------------


def exact_eps(x, time, labels=None, alpha_bar=None) -> Tensor:
    """The teacher: the mixture's own noise prediction."""
    return TARGET.eps(x, alpha_bar)


class EpsMLP(nn.Module):
    """A small eps network of (x, level): blocks whose units the level scales and shifts.

    FourierFeatures of x, down to a period of .5, spare the first block the fine structure.
    """

    def __init__(self, width: int, depth: int):
        super().__init__()
        self.x_frequency = math.pi * 2.0 ** torch.arange(-1, 3)
        self.level_frequency = 2.0 ** torch.arange(-2, 2)
        widths = [2 + 4 * len(self.x_frequency)] + [width] * depth
        self.blocks = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.level = nn.Sequential(
            nn.Linear(1 + 2 * len(self.level_frequency), 32),
            nn.SiLU(),
            nn.Linear(32, 2 * width * depth),
        )
        self.last = nn.Linear(width, 2)
        self.rows = None

    def told(self, rows: int) -> EpsMLP:
        """A copy whose labels are rows, each with scales and shifts of its own beside the level's,
        at first none.
        """
        network = copy.deepcopy(self)
        network.rows = nn.Embedding.from_pretrained(
            torch.zeros(rows, self.level[-1].out_features), freeze=False
        )
        return network

    def forward(self, x, time, labels=None, alpha_bar=None) -> Tensor:
        ratio = schedule.noise_to_signal(alpha_bar.double()).log().to(x)[:, None]
        phase = ratio * self.level_frequency
        level = self.level(torch.cat([ratio / 3, phase.sin(), phase.cos()], 1))
        if self.rows is not None:
            level = level + self.rows(labels)
        phase = (x[:, :, None] * self.x_frequency).flatten(1)
        h = torch.cat([x, phase.sin(), phase.cos()], 1)
        scales, shifts = level.chunk(2, 1)
        count = len(self.blocks)
        for block, scale, shift in zip(
            self.blocks, scales.chunk(count, 1), shifts.chunk(count, 1), strict=True
        ):
            h = nn.functional.silu(block(h) * (1 + scale) + shift)
        return self.last(h)


@dataclass(frozen=True)
class Bench:
    """What is the ground's own, beside TrainConfig."""

    width: int = 128
    depth: int = 3
    mlp_steps: int = 1500
    mlp_rate: float = 5e-3
    mlp_batch: int = 512


def fit(bench: Bench, seed: int) -> EpsMLP:
    """An MLP fitted to the exact noise prediction on exact draws, low levels drawn more often."""
    torch.manual_seed(seed)
    network = EpsMLP(bench.width, bench.depth)
    optimizer = torch.optim.Adam(network.parameters(), lr=bench.mlp_rate)
    draw = rng(seed, "fit")
    for step in range(bench.mlp_steps):
        optimizer.param_groups[0]["lr"] = (
            bench.mlp_rate * (1 + math.cos(math.pi * step / bench.mlp_steps)) / 2
        )
        x0 = TARGET.sample(bench.mlp_batch, draw)
        level = (len(TABLE) * torch.rand(len(x0), generator=draw).square()).long()
        alpha_bar = TABLE[level]
        x = schedule.add_noise(x0, torch.randn(x0.shape, generator=draw), alpha_bar)
        gap = network(x, None, None, alpha_bar) - TARGET.eps(x, alpha_bar)
        loss = dot(gap, gap).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


# ---- training ---------------------------------------------------------------------------------

# what measured best here (docs/experiments/gaussians25.md); an MLP takes larger rates and batches
# than a UNet
RECIPE = {
    "steps": 1200,
    "batch_size": 512,
    "student_rate": 1e-3,
    "student_beta1": 0.9,
    "fake_rate": 3e-3,
    "fake_updates": 10,
}
OF_NFE = {
    "1": {"grid": "0,350", "level_power": 3.0, "steps": 3000},  # and width=256
    "5": {"grid": "0,20,90,240,460,760", "noise_share": "0.7"},
}


def recipe(nfe: str) -> dict:
    """The bench's own settings for a --nfe; TrainConfig has the rest."""
    return RECIPE | OF_NFE.get(nfe, {})


TEACHER = SimpleNamespace(table=TABLE, scheduler=SCHEDULER)  # what chains are made of


def make_chains(config: TrainConfig) -> list[Chain]:
    """The chains that `hsivi train` would make on this schedule."""
    return of_teacher(config, TEACHER, {})


def networks_of(config: TrainConfig, start: EpsMLP) -> Networks:
    own = make_chains(config)
    calls = sum(chain.nfe for chain in own)
    return make_networks(
        config,
        own,
        student=copy.deepcopy(start),
        fake_score=start.told(calls) if config.conditions_layers else copy.deepcopy(start),
        network=lambda mlp: (mlp, Lowered()),
        teacher_eps=exact_eps,
        table=TABLE,
        shape=(2,),
        paths=[make_path(chain, TEACHER) for chain in own] if config.regress_steps else [],
    )


@torch.no_grad()
def draw(network, chain: Chain, log_scale: Tensor, count: int = COUNT, seed: int = 0) -> Tensor:
    """Samples [count, 2] of a chain over a network."""
    generator = rng(seed, "samples")
    noise = [torch.randn(count, 2, generator=generator) for _ in range(chain.nfe)]
    return chains.sample(network, chain, noise[0], noise[1:], log_scale)


def train(config: TrainConfig, bench: Bench, eval_every: int | None) -> dict[int, dict]:
    """One training: by budget, the averaged student's metrics and CPU seconds (fit and all)."""
    began = time.process_time()
    start = fit(bench, config.seed)
    fitted = time.process_time()
    networks = networks_of(config, start)
    last = distill.opening_rounds(config) + config.steps
    spent = fitted - began
    say(f"fit: {spent:.0f} s, untrained: {show_all(measure_ema(networks))}")
    tick = time.process_time()
    for round_ in range(last):
        measured = distill.play_round(networks, config, round_)
        step = round_ - distill.opening_rounds(config) + 1
        if eval_every and step > 0 and step % eval_every == 0 and step < config.steps:
            spent += time.process_time() - tick
            numbers = " ".join(f"{k} {v:.4f}" for k, v in measured.items())
            say(f"step {step}, {spent:.0f} s: {show_all(measure_ema(networks))}   {numbers}")
            tick = time.process_time()
    spent += time.process_time() - tick
    return {nfe: row | {"seconds": spent} for nfe, row in measure_ema(networks).items()}


def measure_ema(networks: Networks) -> dict[int, dict[str, float]]:
    """By budget the metrics of the averaged student."""
    return {
        chain.nfe: measure(draw(networks.ema, chain, networks.ema_scale))
        for chain in networks.chains
    }


def show(row: dict[str, float]) -> str:
    seconds = f", {row['seconds']:.0f} s" if "seconds" in row else ""
    return f"W1 {row['w1']:.3f}  JS {row['js']:.3f}  near {row['near']:.3f}{seconds}"


def show_all(rows: dict[int, dict[str, float]]) -> str:
    return " | ".join(show(row) for row in rows.values())


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def solver_rows(args) -> Iterator[dict]:
    for name in solver_names():
        for nfe in TrainConfig(nfe=args.nfe).budgets:
            try:
                chain = solver(name, nfe, SCHEDULER, TABLE)
            except HsiviError:  # does not fit this many calls
                continue
            row = measure(draw(exact_eps, chain, torch.zeros(1, 1)))
            print(f"{nfe} calls, {name:16} {show(row)}", flush=True)
            yield {"name": name, "nfe": nfe} | row


def student_rows(args, parser: argparse.ArgumentParser) -> Iterator[dict]:
    chosen, own = settings(args.settings, TrainConfig), settings(args.settings, Bench)
    refuse_unknown(parser, args.settings, chosen, own)
    config = replace(TrainConfig(nfe=args.nfe), **(recipe(args.nfe) | chosen))
    for seed in map(int, args.seeds.split(",")):
        rows = train(replace(config, seed=seed), Bench(**own), args.eval_every)
        for nfe, row in rows.items():
            print(f"{nfe} calls, seed {seed}: {show(row)}", flush=True)
            yield {"name": "student", "nfe": nfe, "seed": seed, "settings": args.settings} | row


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description="Train few-call samplers of 25 Gaussians.")
    parser.add_argument(
        "settings", nargs="*", help="key=value of TrainConfig, or width, depth, mlp_*"
    )
    parser.add_argument("--nfe", default="5", help="calls, or several: 1,2,5 for one student")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--eval-every", type=int, help="steps between lines of progress")
    parser.add_argument("--solvers", action="store_true", help="the training-free solvers instead")
    parser.add_argument("--json", help="append one JSON line a row to this file")
    args = parser.parse_intermixed_args()
    rows = list(solver_rows(args) if args.solvers else student_rows(args, parser))
    append_rows(args.json, rows)


if __name__ == "__main__":
    main()
