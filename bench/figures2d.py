"""Inference of plane figures: how near the samples come, by layers and objective.

    python bench/figures2d.py checkerboard --layers 4 --objective lb bridge=diffusion steps=2000
    python bench/figures2d.py all --layers 1,2,4,8 --objective lb,sm --seeds 0,1,2 steps=500

Sliced W1 (64 directions) and Jensen-Shannon divergence in nats (60 x 60 bins over [-4.5, 4.5]^2) of
200,000 samples against 200,000 exact ones; two exact sets are `floor`. Seconds are CPU seconds of
one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import product

import torch
from common import append_rows, refuse_unknown, settings

from hsivi_cli.config import InferConfig
from hsivi_cli.density.fit import fit
from hsivi_cli.density.targets import TARGETS
from hsivi_cli.density.truth import jensen_shannon, sliced_w1
from hsivi_cli.method.steps import rng

COUNT = 200_000
FIGURES = [name for name in TARGETS if name != "diffusion-path"]


def measure(name: str, layers: int, objective: str, chosen: dict) -> dict[str, float]:
    """One training, its samples against exact ones."""
    target = TARGETS[name]()
    truth, other = (target.sample(COUNT, rng(seed, "truth")) for seed in (0, 1))
    began = time.process_time()
    family = fit(target, 2, False, layers=layers, objective=objective, **chosen)
    row = {"seconds": round(time.process_time() - began)}
    for prefix, x in (("", family.sample(COUNT)), ("floor_", other)):
        row[f"{prefix}js"] = jensen_shannon(x, truth, reach=4.5)
        row[f"{prefix}w1"] = sliced_w1(x, truth)
    return row


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description="Measure hsivi infer on plane figures.")
    parser.add_argument("targets", help="names separated by commas, or all")
    parser.add_argument("settings", nargs="*", help="key=value of InferConfig")
    parser.add_argument("--layers", default="4", help="numbers separated by commas")
    parser.add_argument("--objective", default="auto", help="names separated by commas")
    parser.add_argument("--seeds", default="0", help="numbers separated by commas")
    parser.add_argument("--json", help="append one JSON line a row to this file")
    args = parser.parse_intermixed_args()
    chosen = settings(args.settings, InferConfig)
    refuse_unknown(parser, args.settings, chosen)
    if "seed" in chosen:
        parser.error("give seeds by --seeds")
    targets = FIGURES if args.targets == "all" else args.targets.split(",")
    if unknown := set(targets) - set(FIGURES):
        parser.error(f"no figure {', '.join(unknown)}: choose from {', '.join(FIGURES)}")
    seeds, counts = (map(int, text.split(",")) for text in (args.seeds, args.layers))
    for seed, layers, objective, target in product(
        seeds, counts, args.objective.split(","), targets
    ):
        row = {"target": target, "layers": layers, "objective": objective, "seed": seed}
        row |= {"settings": args.settings}
        row |= measure(target, layers, objective, chosen | {"seed": seed})
        print(json.dumps(row), flush=True)
        append_rows(args.json, [row])


if __name__ == "__main__":
    main()
