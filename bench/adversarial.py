"""The adversarial term beside score distillation alone, at equal steps and at equal time.

    python bench/adversarial.py --data fashion-mnist-train --out runs/adversarial
    python bench/adversarial.py --data cifar10-train --teacher DIR --students runs/cifar10 \\
        --reference stats.npz --detector inception --detector-weights FILE --out runs/adversarial-10

From the student of each number of calls, a training with the term and one without, which
goes on after as many steps until it has taken as long. Each row is a line of --out/rows.jsonl as
soon as it is measured; the same command again goes on with those that are missing. Distance,
precision and recall are of --count images to the data: --reference, by --detector. Seconds are
those of training alone: of every kind of round the median, times how many there were. A row's
`share` is the term's in the student's loss, 0 without it.

Words such as student_rate=1e-5 change a setting of both.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, product
from pathlib import Path
from statistics import median

import torch
from common import refuse_unknown, settings

from hsivi_cli.config import PRESETS, TrainConfig
from hsivi_cli.files.device import pick_device
from hsivi_cli.files.logs import append, rows_of
from hsivi_cli.files.places import embedded
from hsivi_cli.method.distill import opening_rounds, play_round
from hsivi_cli.method.networks import Networks
from hsivi_cli.method.steps import joins
from hsivi_cli.metrics.detectors import load_detector
from hsivi_cli.metrics.frechet import frechet_distance, precision_recall
from hsivi_cli.metrics.real import real_images
from hsivi_cli.metrics.statistics import load_statistics, moments_of, random_rows
from hsivi_cli.models.compiled import forward, quick
from hsivi_cli.models.draw import Sampler, draw, student_sampler
from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.networks import averaged_sampler, begin_from, networks_of
from hsivi_cli.models.student import load_student

# the preset at this scale: thousands of images where it has millions
SHORT = {"fake_warmup": 100, "adversarial_after": 5120, "fake_rate": 1e-4, "ema": 0.98}
MOST_FEATURES = 2000  # a side of precision and recall
ROWS = "rows.jsonl"


class Bench:
    """What all trainings share, in one process."""

    def __init__(self, args: argparse.Namespace, chosen: dict) -> None:
        self.args, self.chosen = args, chosen
        self.device = pick_device(args.device)
        torch.set_float32_matmul_precision("high")
        teacher = load_teacher(args.teacher, self.device)
        self.teacher = replace(teacher, clip=None)  # as the preset has it
        self.detector = load_detector(args.detector, args.detector_weights, self.device)
        self.reference = load_statistics(embedded(args.reference))
        self.images = real_images(self.config(1, 0, 0.5), self.teacher)

    def config(self, nfe: int, seed: int, share: float) -> TrainConfig:
        """A training with this share of the term in the student's loss."""
        made = PRESETS["sida"] | SHORT | self.chosen
        made |= {"nfe": str(nfe), "seed": seed, "steps": self.args.steps, "adversarial": share}
        if share:
            made |= {"data": self.args.data, "data_root": self.args.data_root, "flip": True}
        return TrainConfig(**made)

    def networks(self, config: TrainConfig) -> Networks:
        """Those of a training that begins with the student of as many calls."""
        name = f"{self.args.students}/{config.nfe}"
        chains = [load_student(name, self.device).chains[int(config.nfe)]]
        images = self.images if config.adversarial else None
        networks = networks_of(config, self.teacher, chains, None, forward, images)
        begin_from(networks, name, self.teacher)
        return networks

    def score(self, sampler: Sampler) -> dict[str, float]:
        """Distance, precision and recall to the data."""
        images = self.args.count
        batches = draw(sampler, range(images), min(images, self.args.draw_batch), self.device)
        seen, features = moments_of(batches, self.detector, keep_features=True)
        few = min(images, MOST_FEATURES, len(self.reference.features))
        real = random_rows(self.reference.features, few, seed=0).to(self.device)
        precision, recall = precision_recall(real, features[:few])
        distance = frechet_distance(seen, self.reference.moments)
        found = {"distance": distance, "precision": precision, "recall": recall}
        return {name: round(value, 4) for name, value in found.items()}

    def trained(
        self, config: TrainConfig, marks: list[int], seconds: float = 0.0
    ) -> Iterator[tuple[int, float, dict]]:
        """A training's state at some steps, and when it has taken so many seconds: the step, the
        seconds so far, the score of its average. Rates do not fall, so it may be of any length.
        """
        networks, opening = self.networks(config), opening_rounds(config)
        spent = defaultdict(list)
        with quick(networks, config, forward, main=False):
            for round_ in count():
                step = round_ + 1 - opening
                begin = time.perf_counter()
                play_round(networks, config, round_)  # reads its losses, so that it is over
                kind = (step > 0, step > 0 and joins(config, step - 1))
                spent[kind].append(time.perf_counter() - begin)
                so_far = sum(median(each) * len(each) for each in spent.values())
                over = step >= max(marks) and so_far >= seconds
                if step in marks or over:
                    chain = networks.chains[0]
                    sampler = averaged_sampler(networks, chain, self.teacher, config.dtype)
                    yield step, round(so_far, 2), self.score(sampler)
                if over:
                    return


def measure(bench: Bench, nfe: int, seed: int, share: float) -> None:
    """The rows that are missing of one number of calls, seed and share of the term: of the start,
    and of trainings with the term and without it.
    """
    args, steps = bench.args, bench.args.steps
    marks = [max(1, steps // 4), steps]
    about = {"nfe": nfe, "seed": seed, "count": args.count, "settings": args.settings}
    done = {(row["nfe"], row["seed"], row["share"], row["step"]): row for row in rows(args)}

    def keep(share: float, step: int, seconds: float, score: dict) -> None:
        row = about | {"share": share, "step": step, "seconds": seconds} | score
        if done.setdefault((nfe, seed, share, step), row) is row:
            append(args.out / ROWS, row)
            print(json.dumps(row), flush=True)

    if not any(key[0] == nfe and key[3] == 0 for key in done):
        student = student_sampler(load_student(f"{args.students}/{nfe}", bench.device))
        keep(0.0, 0, 0.0, bench.score(student))
    if (nfe, seed, share, steps) not in done:
        for found in bench.trained(bench.config(nfe, seed, share), marks):
            keep(share, *found)
    wanted = done[nfe, seed, share, steps]["seconds"]
    alone = [row for key, row in done.items() if key[:3] == (nfe, seed, 0.0) and key[3] >= steps]
    if not any(row["seconds"] >= wanted or row["step"] > steps for row in alone):
        for found in bench.trained(bench.config(nfe, seed, 0.0), marks, wanted):
            keep(0.0, *found)


def rows(args: argparse.Namespace) -> list[dict]:
    return list(rows_of(args.out / ROWS, "nfe", "seed", "share", "step", "seconds"))


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure the adversarial term.")
    parser.add_argument("settings", nargs="*", help="key=value of TrainConfig")
    parser.add_argument("--data", required=True, help="real images, as `hsivi train --data`")
    parser.add_argument("--data-root", help="where torchvision's data sets lie")
    parser.add_argument("--out", type=Path, default=Path("runs/adversarial"))
    parser.add_argument(
        "--students", default="embedded:students", help="folder of a student for each of --calls"
    )
    parser.add_argument("--teacher", help="a diffusers directory; default: the embedded one")
    parser.add_argument("--reference", default="embedded:reference.npz", help="statistics")
    parser.add_argument("--detector", default="fashion-mnist", help="as `hsivi fid` takes it")
    parser.add_argument("--detector-weights", type=Path, help="of the Inception network")
    parser.add_argument("--calls", type=int, nargs="+", default=[4, 1, 2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.1], help="of the term")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--count", type=int, default=5000, help="images of a score")
    parser.add_argument("--draw-batch", type=int, default=500)
    parser.add_argument("--device")
    args = parser.parse_intermixed_args(words)
    chosen = settings(args.settings, TrainConfig)
    refuse_unknown(parser, args.settings, chosen)
    args.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(args, chosen)
    for share, seed, nfe in product(args.shares, args.seeds, args.calls):
        measure(bench, nfe, seed, share)


if __name__ == "__main__":
    main()
