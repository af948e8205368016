"""Inference of plane figures: how near the samples come, by layers and objective.

    python bench/figures2d.py checkerboard --layers 4 --objective lb bridge=diffusion steps=2000

Sliced W1 (64 directions) and Jensen-Shannon divergence in nats (60 x 60 bins over [-4.5, 4.5]^2) of
200,000 samples against 200,000 exact ones; two exact sets are `floor`. Seconds are CPU seconds of
one thread.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from common import append_rows, refuse_unknown, settings

from hsivi_cli.config import InferConfig
from hsivi_cli.distill import rng
from hsivi_cli.infer import fit
from hsivi_cli.points import jensen_shannon, sliced_w1
from hsivi_cli.targets import TARGETS

COUNT = 200_000


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description="Measure hsivi infer on plane figures.")
    parser.add_argument("target", choices=[n for n in TARGETS if n != "diffusion-path"])
    parser.add_argument("settings", nargs="*", help="key=value of InferConfig")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--objective", default="auto")
    parser.add_argument("--json", help="append one JSON line to this file")
    args = parser.parse_intermixed_args()
    chosen = settings(args.settings, InferConfig)
    refuse_unknown(parser, args.settings, chosen)
    target = TARGETS[args.target]()
    truth = target.sample(COUNT, rng(0, "truth"))
    other = target.sample(COUNT, rng(1, "truth"))
    began = time.process_time()
    family = fit(target, 2, False, layers=args.layers, objective=args.objective, **chosen)
    row = {"target": args.target, "layers": args.layers, "objective": args.objective}
    row |= {"settings": args.settings, "seconds": round(time.process_time() - began)}
    for name, x in (("", family.sample(COUNT)), ("floor_", other)):
        row[f"{name}js"] = jensen_shannon(x, truth, reach=4.5)
        row[f"{name}w1"] = sliced_w1(x, truth)
    print(json.dumps(row), flush=True)
    append_rows(args.json, [row])


if __name__ == "__main__":
    main()
