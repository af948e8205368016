"""Neural network regression on held-out data, by posterior: the layers, Gaussians and NUTS.

    python bench/regression.py diabetes --splits 5 layers=2 steps=300

Each split keeps a tenth of the rows (at most 1,000 train) for the test. Root mean squared error of
the posterior's mean prediction and mean log likelihood of a test row under the posterior mixture,
both with outputs of sd 1. Seconds are CPU seconds of one thread, the Gaussian's with both fits.
"""

from __future__ import annotations

import argparse
import json
import math
import time

import torch
from common import append_rows, refuse_unknown, settings
from torch import Tensor

from hsivi_cli.config import InferConfig
from hsivi_cli.density.datasets import abalone, diabetes
from hsivi_cli.density.fit import fit
from hsivi_cli.density.gaussian import Affine
from hsivi_cli.density.networks import best_gaussian
from hsivi_cli.density.nuts import nuts
from hsivi_cli.density.posteriors import neural_network, neural_regression
from hsivi_cli.method.steps import rng

DATA = {"diabetes": diabetes, "abalone": abalone}
COUNT, MOST = 1000, 1000  # draws of a posterior, rows that train


def split(name: str, seed: int) -> list[Tensor]:
    """Inputs and outputs to train and to test, standardised together."""
    inputs, outputs = DATA[name]()
    order = torch.randperm(len(inputs), generator=rng(seed, "split"))
    held = len(inputs) // 10
    test, train = order[:held], order[held : held + MOST]
    return [inputs[train], outputs[train], inputs[test], outputs[test]]


def score(draws: Tensor, inputs: Tensor, outputs: Tensor) -> dict[str, float]:
    """Test error and log likelihood of posterior draws [S, dim]."""
    mean, s = neural_network(draws, inputs)
    log_density = (s[:, None] - math.log(2 * math.pi) - (outputs - mean).square() * s[:, None].exp()
                   ) / 2  # fmt: skip
    return {
        "rmse": (mean.mean(0) - outputs).square().mean().sqrt().item(),
        "log_likelihood": (log_density.logsumexp(0) - math.log(len(draws))).mean().item(),
    }


def methods(target, seed: int, chosen: dict, draws: int):
    """Names and functions that draw from the target [COUNT, dim]."""
    config, whitened = InferConfig(seed=seed), {}

    def gaussian(full: bool) -> Tensor:
        whitened[full] = Affine(target, *best_gaussian(config, target, full))
        return whitened[full].out(torch.randn(COUNT, target.dim, generator=rng(seed, "draws")))

    yield "full-rank", lambda: gaussian(True)
    yield "mean-field", lambda: gaussian(False)
    yield "hsivi", lambda: fit(target, target.dim, False, seed=seed, **chosen).sample(COUNT)
    if draws:
        yield "nuts", lambda: nuts(whitened[True], 1, draws, seed).draws[0]


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description="Measure regression on held-out data.")
    parser.add_argument("data", choices=DATA)
    parser.add_argument("settings", nargs="*", help="key=value of InferConfig")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--draws", type=int, default=COUNT, help="NUTS draws; 0 leaves NUTS out")
    parser.add_argument("--json", help="append one JSON line a row to this file")
    args = parser.parse_intermixed_args()
    chosen = settings(args.settings, InferConfig)
    refuse_unknown(parser, args.settings, chosen)
    for seed in range(args.splits):
        inputs, outputs, *test = split(args.data, seed)
        target = neural_regression(inputs, outputs)
        for name, draw in methods(target, seed, chosen, args.draws):
            began = time.process_time()
            with torch.enable_grad():
                drawn = draw()
            row = {"data": args.data, "split": seed, "name": name, "settings": args.settings}
            row |= {"cpu_seconds": round(time.process_time() - began)} | score(drawn, *test)
            print(json.dumps(row), flush=True)
            append_rows(args.json, [row])


if __name__ == "__main__":
    main()
