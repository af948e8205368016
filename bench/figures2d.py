"""Inference of plane figures: how near the samples come, by layers and objective.

    python bench/figures2d.py checkerboard --layers 4 --objective lb bridge=diffusion steps=2000
    python bench/figures2d.py all --layers 4 --objective lb,sm --seeds 0,1,2 --json rows.jsonl
    python bench/figures2d.py --table     # writes bench/figures2d.jsonl into docs/results-infer.md

200,000 samples against 200,000 exact ones:

    mean    the worst difference of the means over coordinates, in the truth's sds
    sd      the worst |ratio of the sds - 1|; the funnel's of its inner 99 % along each
    weight  the worst difference of a mode's share, where there are modes
    js, w1  Jensen-Shannon divergence in nats (60 x 60 bins over [-4.5, 4.5]^2) and sliced W1 (64
            directions); two exact sets are `floor`

Seconds are CPU seconds of one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from itertools import product
from pathlib import Path

import torch
from common import append_rows, refuse_unknown, settings
from torch import Tensor

from hsivi_cli.config import InferConfig
from hsivi_cli.density.fit import fit
from hsivi_cli.density.targets import TARGETS, GaussianMixture
from hsivi_cli.density.truth import jensen_shannon, sliced_w1
from hsivi_cli.method.steps import rng

COUNT = 200_000
FIGURES = [name for name in TARGETS if name != "diffusion-path"]
ROOT = Path(__file__).parent.parent
RECORD, PAGE = ROOT / "bench" / "figures2d.jsonl", ROOT / "docs" / "results-infer.md"
BEGIN, END = "<!-- python bench/figures2d.py --table -->\n", "<!-- end of the table -->"
AIMS = {"mean": 0.05, "sd": 0.05, "weight": 0.03}  # the aims


def moments(name: str, samples: Tensor, truth: Tensor) -> dict[str, float]:
    """`mean` and `sd` of samples [N, 2]."""
    x, y = samples.double(), truth.double()
    low, high = y.quantile(torch.tensor([0.005, 0.995]).double(), dim=0)

    def sd(draws: Tensor) -> Tensor:
        if name != "funnel":
            return draws.std(0)
        inner = (draws >= low) & (draws <= high)
        return torch.stack([draws[inner[:, i], i].std() for i in range(2)])

    return {
        "mean": ((x.mean(0) - y.mean(0)).abs() / y.std(0)).max().item(),
        "sd": (sd(x) / sd(y) - 1).abs().max().item(),
    }


def mode_of(name: str, x: Tensor) -> Tensor | None:
    """The mode that each sample [N, 2] is of; None where a figure has but one."""
    if name == "circles":
        return (x.norm(dim=1) > 1.75).long()
    if name == "checkerboard":
        return ((x + 2).floor().clamp(0, 3) @ torch.tensor([4.0, 1.0])).long()
    target = TARGETS[name]()
    if name == "x-shape" or not isinstance(target, GaussianMixture):
        return None
    return torch.cat([torch.cdist(part, target.mean.float()).argmin(1) for part in x.split(20_000)])


def weight_error(name: str, samples: Tensor, truth: Tensor) -> dict[str, float]:
    """`weight`, where there are modes."""
    if (modes := mode_of(name, samples)) is None:
        return {}
    shares = [torch.bincount(m, minlength=25) / len(m) for m in (modes, mode_of(name, truth))]
    return {"weight": (shares[0] - shares[1]).abs().max().item()}


def measure(name: str, layers: int, objective: str, chosen: dict) -> dict[str, float]:
    """One training, its samples against exact ones."""
    target = TARGETS[name]()
    truth, other = (target.sample(COUNT, rng(seed, "truth")) for seed in (0, 1))
    began = time.process_time()
    family = fit(target, 2, False, layers=layers, objective=objective, device="cpu", **chosen)
    row = {"seconds": round(time.process_time() - began)}
    for prefix, x in (("", family.sample(COUNT)), ("floor_", other)):
        row |= {f"{prefix}{key}": value for key, value in moments(name, x, truth).items()}
        row |= {f"{prefix}{key}": value for key, value in weight_error(name, x, truth).items()}
        row[f"{prefix}js"] = jensen_shannon(x, truth, reach=4.5)
        row[f"{prefix}w1"] = sliced_w1(x, truth)
    return row


def table(rows: list[dict]) -> str:
    """Markdown of rows: a line a figure and a column a setting, each cell the worst over seeds of
    mean / sd / weight, then the mean JS / W1 and seconds; a number that misses its aim is bold.
    """
    cells, columns = defaultdict(list), []
    for row in rows:
        column = f"{row['objective']}, K = {row['layers']}" + "".join(
            f", {word}" for word in row["settings"]
        )
        columns += [column] if column not in columns else []
        cells[row["target"], column].append(row)
    lines = [["figure", *columns], ["---"] * (1 + len(columns))]
    for name in (name for name in FIGURES if any(name == target for target, _ in cells)):
        lines.append([name, *(cell(cells[name, column]) for column in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page() -> str:
    """docs/results-infer.md with the table of the recorded rows between its marks."""
    rows = [json.loads(line) for line in RECORD.read_text().splitlines()]
    head, begin, rest = PAGE.read_text().partition(BEGIN)
    return head + begin + table(rows) + "\n" + END + rest.partition(END)[2]


def cell(rows: list[dict]) -> str:
    if not rows:
        return ""
    worst = [max(row[key] for row in rows) for key in AIMS if key in rows[0]]
    aims = [aim for key, aim in AIMS.items() if key in rows[0]]
    texts = [f"{v:.3f}".removeprefix("0") for v in worst]
    texts = [f"**{t}**" if v > aim else t for t, v, aim in zip(texts, worst, aims, strict=True)]
    js, w1, seconds = (sum(row[key] for row in rows) / len(rows) for key in ("js", "w1", "seconds"))
    return f"{' / '.join(texts)}; {js:.2g} / {w1:.2f}; {seconds:.0f} s".replace(" 0.", " .")


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description="Measure hsivi infer on plane figures.")
    parser.add_argument("targets", nargs="?", help="names separated by commas, or all")
    parser.add_argument("settings", nargs="*", help="key=value of InferConfig")
    parser.add_argument("--layers", default="4", help="numbers separated by commas")
    parser.add_argument("--objective", default="auto", help="names separated by commas")
    parser.add_argument("--seeds", default="0", help="numbers separated by commas")
    parser.add_argument("--json", help="append one JSON line a row to this file")
    parser.add_argument("--table", action="store_true", help="write the recorded rows' table")
    args = parser.parse_intermixed_args()
    if args.table:
        PAGE.write_text(page())
        return
    if not args.targets:
        parser.error("name figures, or all")
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
