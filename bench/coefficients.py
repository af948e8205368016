"""A solver's coefficients trained alone on the 25 Gaussians, over the exact score.

    python bench/coefficients.py --nfe 5 --start dpm++2-lu

The chain's cx and ce (K (K+1)/2 + K numbers) and the times that the network is told are moved, as
additions to the solver's own, until the chain's samples lie near those of UniPC's many calls from
its own top level and the same x_K (mean squared distance). On images `hsivi train --fit-steps 300
--steps 0` does the same. Prints the metrics of gaussians25.py; seconds are CPU seconds of one
thread, the many calls included.
"""

from __future__ import annotations

import argparse
import math
import time

import gaussians25 as ground
import torch

from hsivi_cli.method import chain as chains
from hsivi_cli.method.chain import Chain
from hsivi_cli.method.fit import fit_coefficients
from hsivi_cli.method.steps import rng
from hsivi_cli.models.spacings import solver, unipc_at


def many_calls(start: Chain, calls: int) -> Chain:
    """UniPC from a start's own top level down, in equal steps of time."""
    top = round(start.time[-1].item())
    times = [math.ceil(top * i / calls) for i in range(1, calls + 1)]
    return unipc_at(times, ground.SCHEDULER, ground.TABLE)


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description="Train a solver's coefficients alone.")
    parser.add_argument("--nfe", type=int, default=5)
    parser.add_argument("--start", default="dpm++2-lu")
    parser.add_argument("--teacher-calls", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    began = time.process_time()
    start = solver(args.start, args.nfe, ground.SCHEDULER, ground.TABLE)
    many = many_calls(start, args.teacher_calls)
    x = torch.randn(args.pairs, 2, generator=rng(args.seed, "pairs"))
    wanted = chains.sample(ground.exact_eps, many, x, None, torch.zeros(1, 1)).float()
    draw = rng(args.seed, "fit")
    chain = fit_coefficients(
        ground.exact_eps, start, x, wanted, None, args.steps, draw, args.batch_size
    )
    spent = time.process_time() - began
    for name, each in (("solver", start), ("fitted", chain)):
        row = ground.measure(ground.draw(ground.exact_eps, each, torch.zeros(1, 1)))
        print(f"{args.nfe} calls, {args.start}, {name}: {ground.show(row)}")
    print(f"{spent:.0f} CPU seconds")


if __name__ == "__main__":
    main()
