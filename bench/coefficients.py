"""A solver's coefficients fitted alone on the 25 Gaussians, over their exact score: are they worth
their place beside trained weights?

    python bench/coefficients.py --nfe 5 --start dpm++2-lu --seed 0

The chain's cx and ce (K (K+1)/2 + K numbers) and the times that the network is told are moved, as
additions to the solver's own, until the chain's samples lie near those of many calls from the same
x_K (mean squared distance), which is how the literature trains them. The many calls begin where the
chain begins: from full noise, a chain that begins lower down would be held to samples that its x_K
does not lead to. What comes out is measured as in gaussians25.py; on images, `hsivi train
--fit-steps` does the same. Seconds are CPU seconds of one thread, the many calls included.
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

SCALE = torch.zeros(1, 1)


def many_calls(chain: Chain, calls: int) -> Chain:
    """UniPC at equal steps of time, from the chain's own beginning."""
    top = round(chain.time[-1].item())
    times = [math.ceil(top * i / calls) for i in range(1, calls + 1)]
    return unipc_at(times, ground.SCHEDULER, ground.TABLE)


def fitted(chain: Chain, calls: int, pairs: int, steps: int, batch_size: int, seed: int) -> Chain:
    """The chain whose samples lie nearest to those of many calls, noise for noise."""
    x = torch.randn(pairs, 2, generator=rng(seed, "pairs"))
    wanted = chains.sample(ground.exact_eps, many_calls(chain, calls), x, None, SCALE).float()
    return fit_coefficients(
        ground.exact_eps, chain, x, wanted, None, steps, rng(seed, "fit"), batch_size
    )


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description="Fit a solver's coefficients alone.")
    parser.add_argument("--nfe", type=int, default=5)
    parser.add_argument("--start", default="dpm++2-lu")
    parser.add_argument("--calls", type=int, default=100, help="of the samples that are fitted to")
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.process_time()
    start = solver(args.start, args.nfe, ground.SCHEDULER, ground.TABLE)
    chain = fitted(start, args.calls, args.pairs, args.steps, args.batch_size, args.seed)
    spent = time.process_time() - began
    for name, each in (("solver", start), ("fitted", chain)):
        row = ground.measure(ground.draw(ground.exact_eps, each, SCALE))
        print(f"{args.nfe} calls, {args.start}, {name}: {ground.show(row)}")
    print(f"{spent:.0f} CPU seconds")


if __name__ == "__main__":
    main()
