"""The default recipe on every teacher of bench/teachers.py, whose verbs these are.

    python bench/teachers.py solvers --out runs/teachers     # the best solver of every budget
    python bench/teachers.py students --out runs/teachers    # trains, and scores what is exported
    python bench/teachers.py starts --out runs/teachers      # what --start auto sees of them
    python bench/teachers.py table --out runs/teachers

Each row is a line of --out/rows.jsonl as soon as it is measured; the same command again goes on
with those that are missing, and several may run side by side with other --only or --nfe. Distances
and recalls are of --count images, to the train split's statistics (data) and to images that the
teacher itself draws (own), by the classifier of the data set and size.

Solvers are tuned on other seeds than those reported: every family and spacing, x0 as it is and as
the teacher's pipeline keeps it, the best three of some 500 images on four times as many. Students
are judged by their teachers alone, as the default has it. `last` is the last average, whatever the
judge chose. A start's row tells alpha_bar where it begins, its gap to the teacher's images noise
for noise, and how far its own are as a set, without noise and with that of its share. `--only
embedded` is the teacher that comes with hsivi; rows of other options, given after --, are told
apart by --tag.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import isfinite
from pathlib import Path
from statistics import mean

from torch import Tensor

from hsivi_cli.cli import main as hsivi
from hsivi_cli.config import TrainConfig, settings_of
from hsivi_cli.errors import HsiviError
from hsivi_cli.files.checkpoint import load_checkpoint
from hsivi_cli.files.device import pick_device
from hsivi_cli.files.logs import append, rows_of
from hsivi_cli.files.places import weights_folder
from hsivi_cli.method.chain import with_noise_share
from hsivi_cli.method.schedule import Clip
from hsivi_cli.metrics.detectors import load_detector
from hsivi_cli.metrics.frechet import frechet_distance, precision_recall
from hsivi_cli.metrics.own import OwnImages, own_sampler, start_judge
from hsivi_cli.metrics.statistics import (
    Statistics,
    load_statistics,
    moments_of,
    random_rows,
    save_statistics,
)
from hsivi_cli.models.clips import find_clip
from hsivi_cli.models.draw import CLIPPED, Sampler, draw, solver_sampler, student_sampler
from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.shares import parse_share
from hsivi_cli.models.spacings import parse_solver, solver_names
from hsivi_cli.models.starts import PAIRS, bare_chains, finalists, teacher_gap
from hsivi_cli.models.student import load_student

FAMILIES = ("unipc", "dpm++2", "dpm++3", "deis", "ipndm", "ddim", "sde-dpm++2", "sde-dpm++3")
SEEDS = 0  # the first of the seeds that are reported
TUNING = 5_000_000  # the first of those by which solvers are tuned
FEW, FINALISTS = 500, 3  # images by which all spacings are tried, and how many go on
ROWS = "rows.jsonl"
EMBEDDED = "embedded"  # the name of the teacher that comes with hsivi


def pipeline_of(name: str, out: Path) -> str | Path:
    """Where a teacher lies."""
    return "embedded:teacher" if name == EMBEDDED else out / name / "pipeline"


class Ground:
    """One teacher and what its samplers are scored by."""

    def __init__(self, name: str, teachers: dict, args: argparse.Namespace) -> None:
        self.name, self.args = name, args
        self.device = pick_device(args.device)
        self.pipeline, folder = pipeline_of(name, args.out), weights_folder()
        if name != EMBEDDED:
            folder = args.out / "detectors" / teachers[name].images
        self.teacher = load_teacher(str(self.pipeline), self.device)
        self.detector = load_detector(str(folder / "detector"), None, self.device)
        self.data = load_statistics(folder / "reference.npz")
        self.own = self.own_statistics(args.out / name / f"own-{args.count}.npz")

    def own_statistics(self, file: Path) -> Statistics:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            drawn = OwnImages(self.teacher).batches(self.args.count)
            seen = moments_of(drawn, self.detector, True)
            own = Statistics(seen[0], self.detector.stamp, seen[1], self.teacher.image)
            save_statistics(file, own)
        return load_statistics(file)

    def drawn(self, sampler: Sampler, first: int, count: int) -> Iterator[Tensor]:
        return draw(sampler, range(first, first + count), min(count, 500), self.device)

    def distance(self, sampler: Sampler, count: int) -> float:
        """To the data, by seeds for tuning."""
        seen, _ = moments_of(self.drawn(sampler, TUNING, count), self.detector)
        return frechet_distance(seen, self.data.moments)

    def score(self, sampler: Sampler) -> dict[str, float]:
        """Distances and recalls to the data and to the teacher's own images."""
        return self.scored(self.drawn(sampler, SEEDS, self.args.count))

    def scored(self, batches: Iterable[Tensor]) -> dict[str, float]:
        """`score` of images that are drawn already, in batches."""
        seen, features = moments_of(batches, self.detector, keep_features=True)
        found = {}
        for side, reference in (("data", self.data), ("own", self.own)):
            found[side] = round(frechet_distance(seen, reference.moments), 3)
            few = min(len(features), len(reference.features))
            real = random_rows(reference.features, few, seed=0).to(self.device)
            shares = precision_recall(real, random_rows(features, few, seed=1))
            names = ("precision", "recall") if side == "data" else ("own_precision", "own_recall")
            found |= {n: round(share, 3) for n, share in zip(names, shares, strict=True)}
        return found

    def best_solver(self, nfe: int) -> Sampler:
        """The solver, spacing and clipping whose images are nearest to the data."""
        found: dict[tuple, Sampler] = {}
        names = self.args.solvers.split(",") if self.args.solvers else solver_names(FAMILIES)
        for name in names:
            parse_solver(name)  # which refuses what is none
            for clip in (None, self.teacher.clip or Clip()):
                try:
                    sampler = solver_sampler(self.teacher, name, nfe, clip=clip)
                except HsiviError:  # a spacing that does not fit this many calls
                    continue
                found[name, clip] = sampler
        if not found:
            raise HsiviError(f"none of {', '.join(names)} takes {nfe} calls on {self.name}")
        left = list(found.values())
        for count in (FEW, 4 * FEW):
            left.sort(key=lambda sampler: self.distance(sampler, count))
            left = left[:FINALISTS]
        return left[0]


def measured(args: argparse.Namespace) -> set[tuple]:
    """What rows there are, by kind, teacher, calls, seed and tag."""
    keys = ("kind", "teacher", "nfe", "seed")
    rows = rows_of(args.out / ROWS, *keys)
    return {(*(row[key] for key in keys), row.get("tag", "")) for row in rows}


def keep(args: argparse.Namespace, row: dict) -> None:
    append(args.out / ROWS, row)
    print(json.dumps(row), flush=True)


def solvers(args: argparse.Namespace, teachers: dict) -> None:
    """The teacher's own line, and the best solver at each number of calls."""
    for name in args.only.split(","):
        ground = None
        for nfe in (0, *map(int, args.nfe.split(","))):
            kind = "solver" if nfe else "teacher"
            if (kind, name, nfe, 0, "") in measured(args):
                continue
            ground = ground or Ground(name, teachers, args)
            sampler = ground.best_solver(nfe) if nfe else own_sampler(ground.teacher)
            row = {"kind": kind, "teacher": name, "nfe": nfe, "seed": 0, "step": 0}
            keep(args, row | {"name": sampler.name, "count": args.count} | ground.score(sampler))


def starts(args: argparse.Namespace, teachers: dict) -> None:
    """What --start auto sees of its finalists."""
    for name in args.only.split(","):
        teacher = load_teacher(str(pipeline_of(name, args.out)), pick_device(args.device))
        pipeline, clip = teacher, find_clip(TrainConfig(), teacher, None, lambda f: f())
        teacher = replace(teacher, clip=clip)
        look, gap = start_judge(teacher, pipeline), teacher_gap(teacher, PAIRS)
        for nfe in map(int, args.nfe.split(",")):
            config = TrainConfig(**settings_of({"nfe": str(nfe), "start": "auto"}))
            chains = dict(bare_chains(config, nfe, teacher))
            gaps = {start: gap(chain) for start, chain in chains.items()}
            best = sorted(filter(lambda start: isfinite(gaps[start]), gaps), key=gaps.get)
            for start in finalists(best, chains):
                chain = chains[start]
                noisy = with_noise_share(chain, parse_share(config.noise_share, chain))
                seen = {"alpha_bar": chain.alpha_bar[-1].item(), "gap": gaps[start]}
                seen |= {"set": look(chain), "noisy": look(noisy)}
                row = {"kind": "start", "teacher": name, "nfe": nfe, "seed": 0, "step": 0}
                keep(args, row | {"name": start} | {k: round(v, 5) for k, v in seen.items()})


def students(args: argparse.Namespace, teachers: dict) -> None:
    """Trains a student for each teacher, number of calls and seed, and scores it."""
    for name in args.only.split(","):
        ground = None
        for nfe in map(int, args.nfe.split(",")):
            for seed in map(int, args.seeds.split(",")):
                if ("student", name, nfe, seed, args.tag) in measured(args):
                    continue
                ground = ground or Ground(name, teachers, args)
                student(ground, nfe, seed)


def student(ground: Ground, nfe: int, seed: int) -> None:
    args = ground.args
    out = args.out / "students" / f"{ground.name}-{nfe}-{seed}{args.tag}"
    words = ["train", ground.pipeline, "--nfe", nfe, "--seed", seed, "--out", out,
             "--device", ground.device.type, *args.train_options]  # fmt: skip
    hsivi([str(word) for word in words], standalone_mode=False)
    made = load_student(out, ground.device)
    best = made.info["best"] or {"step": made.info["step"]}
    row = {"kind": "student", "teacher": ground.name, "nfe": nfe, "seed": seed,
           "step": best["step"], "steps": made.info["step"], "tag": args.tag,
           "seconds": made.info["seconds"], "start": made.info["starts"].get(str(nfe)),
           "clip": made.info["clip"], "count": args.count, "commit": commit()}  # fmt: skip
    found = ground.score(student_sampler(made))
    keep(args, row | found)
    if best["step"] < made.info["step"]:  # the last average beside it
        tensors, _ = load_checkpoint(out / "checkpoint")
        own = {n[4:]: t for n, t in tensors.items() if n.startswith("ema.")}
        made.model.unet.load_state_dict(own)
        found = ground.score(student_sampler(made))
    keep(args, row | {"kind": "last", "step": made.info["step"]} | found)


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def table(args: argparse.Namespace, teachers: dict) -> None:
    """A Markdown table: a line a teacher and number of calls; means over seeds."""
    rows = [r for r in rows_of(args.out / ROWS, "kind") if r.get("tag", args.tag) == args.tag]

    def cell(kind: str, name: str, nfe: int) -> tuple[str, list[dict]]:
        found = [r for r in rows if (r["kind"], r["teacher"], r["nfe"]) == (kind, name, nfe)]
        if not found:
            return "-", found
        data, recall, own = (mean(r[k] for r in found) for k in ("data", "recall", "own"))
        return f"{data:.2f} ({recall:.2f}), {own:.2f}", found

    print("| teacher | its own line | calls | best solver | student | step | last average |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in args.only.split(","):
        line, _ = cell("teacher", name, 0)
        for nfe in map(int, args.nfe.split(",")):
            (best, solver), (told, made) = cell("solver", name, nfe), cell("student", name, nfe)
            steps = ", ".join(str(r["step"]) for r in made) or "-"
            if solver:
                best += f" {solver[0]['name'].replace(CLIPPED, ', clipped')}"
            last, _ = cell("last", name, nfe)
            print(f"| {name} | {line} | {nfe} | {best} | {told} | {steps} | {last} |")


def add_verbs(verbs, teachers: dict) -> None:
    """The verbs of this file. teachers: by name, of what images each is."""
    for work in (solvers, starts, students, table):
        verb = verbs.add_parser(work.__name__, help=work.__doc__.splitlines()[0])
        verb.add_argument("train_options", nargs="*", help="after --: options of hsivi train")
        verb.add_argument("--out", type=Path, default="runs/teachers")
        verb.add_argument("--only", default=",".join(teachers), help="names, separated by commas")
        verb.add_argument("--nfe", default="2,4,8,10")
        verb.add_argument("--seeds", default="0", help="of trainings")
        verb.add_argument("--count", type=int, default=5000, help="images of a row")
        verb.add_argument("--solvers", help="names that are tried, separated by commas, not all")
        verb.add_argument("--tag", default="", help="tells rows of other options apart")
        verb.add_argument("--device")
        verb.set_defaults(work=work)
