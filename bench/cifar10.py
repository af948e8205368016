"""CIFAR-10 by the real FID: students of a teacher, the solvers on it and the teacher itself, within
minutes of one GPU and in one process.

    python bench/cifar10.py --teacher DIR --reference cifar10.npz --detector-weights FILE \\
        --out runs/cifar10 --minutes 7

Trains a student for each budget of --nfe in its order, then the paper's preset at 10 calls and that
of SiD, each for as long at most as the others, and scores every one on --count images as soon as it
is there; solvers and the teacher as they are, and with x0 kept in range as the teacher's pipeline
keeps it. A row is printed as it comes and kept in --out/rows.jsonl. The same command again goes on
where it stopped: rows are not measured twice, and trainings resume. Without --teacher one of 36 M
parameters is trained first. --size 16 halves the images, so that a CPU goes the same way. Options
after -- go to every `hsivi train`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn.functional import adaptive_avg_pool2d

from hsivi_cli.cli import main as hsivi
from hsivi_cli.files.device import pick_device
from hsivi_cli.files.images import save_npz
from hsivi_cli.metrics.detectors import load_detector
from hsivi_cli.metrics.frechet import frechet_distance, precision_recall
from hsivi_cli.metrics.judge import read_files
from hsivi_cli.metrics.statistics import (
    image_batches,
    moments_of,
    save_statistics,
    statistics_of,
)
from hsivi_cli.models.draw import Sampler, draw, solver_sampler, student_sampler
from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.student import load_student

TRAIN_TEACHER = Path(__file__).parent.parent / "weights" / "train_teacher.py"
RESERVE = 0.45  # of --minutes, for what is no training: imports, solvers, scores
RECALL_COUNT = 2000  # features a side for precision and recall


def prepare(source: str, data_root: str, size: int, count: int | None, file: Path) -> str:
    """The first `count` images of a data set, a folder or an .npz file, shrunk to size x size by
    averaging, as an .npz file; the source itself where nothing is to change.
    """
    images = torch.cat(list(image_batches(source, data_root)[1]))
    if images.shape[1] == size and not count:
        return source
    pixels = adaptive_avg_pool2d(images[:count].permute(0, 3, 1, 2).float(), size)
    save_npz(pixels.round().to(torch.uint8).permute(0, 2, 3, 1), file)
    return str(file)


def made_teacher(args) -> Path:
    """A teacher trained on --images."""
    images = prepare(args.images, args.data_root, args.size, None, args.out / "images.npz")
    words = [
        TRAIN_TEACHER, "--images", images, "--data-root", args.data_root,
        "--out", args.out / "teacher", "--flip", "--attention", 1, "--channels", args.channels,
        "--layers", args.layers, "--batch-size", args.batch_size, "--steps", args.teacher_steps,
        "--rate", args.teacher_rate,
    ]  # fmt: skip
    subprocess.run([sys.executable, *map(str, words)], check=True)
    return args.out / "teacher" / "pipeline"


class Judge:
    """Scores samplers by --count images, once each."""

    def __init__(self, args, device: torch.device) -> None:
        self.args, self.device, self.file = args, device, args.out / "rows.jsonl"
        weights = Path(args.detector_weights) if args.detector_weights else None
        name = args.detector or "inception"
        self.detector = load_detector(name, weights, device)
        kept = args.out / "reference.npz"
        source = str(kept) if kept.exists() else args.reference
        self.reference = read_files(source).get(source) or statistics_of(
            source, self.detector, args.data_root, keep_features=True
        )
        if not kept.exists():
            save_statistics(kept, self.reference)
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self.rows = {row["name"]: row for row in map(json.loads, lines)}

    def row(self, name: str, sampler: Sampler, **facts) -> None:
        begin = time.monotonic()
        count, size = self.args.count, min(self.args.count, self.args.draw_size)
        batches = draw(sampler, range(count), size, self.device)
        moments, features = moments_of(batches, self.detector, keep_features=True)
        row = {"name": name, "nfe": sampler.nfe, "count": count,
               "fid": round(frechet_distance(moments, self.reference.moments), 3)}  # fmt: skip
        if (real := self.reference.features) is not None:
            few = min(RECALL_COUNT, len(real), len(features))
            pair = precision_recall(real[:few].to(self.device), features[:few].to(self.device))
            row["precision"], row["recall"] = (round(part, 3) for part in pair)
        row |= {"seconds_of_scoring": round(time.monotonic() - begin, 1)} | facts
        self.show(row)
        self.rows[name] = row
        with open(self.file, "a") as file:
            file.write(json.dumps(row) + "\n")

    def show(self, row: dict) -> None:
        shares = ("precision", "recall")
        recall = "".join(f"  {name} {row[name]:.3f}" for name in shares if name in row)
        minutes = f"  {row['minutes']:.2f} min" if "minutes" in row else ""
        print(f"{row['name']:<28} {row['nfe']:>3} calls  fid {row['fid']:8.3f}{recall}{minutes}",
              flush=True)  # fmt: skip


def trainings(args) -> Iterator[tuple[str, list[str]]]:
    """Names and options of the students, in the order of their worth."""
    for nfe in args.nfe.split(","):
        yield f"student-{nfe}", ["--nfe", nfe, "--batch-size", str(args.batch_size)]
    if not args.no_presets:
        size = ["--batch-size", str(args.batch_size)]
        yield "preset-hsivi-10", ["--preset", "hsivi", "--nfe", "10", *size]
        yield "preset-sid", ["--preset", "sid", *size]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("train_options", nargs="*", help="after --: options of hsivi train")
    parser.add_argument("--teacher", help="a diffusers directory; default: one is trained")
    parser.add_argument("--images", default="cifar10-train", help="a data set, folder or .npz file")
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=7.0, help="for all, but the teacher's")
    parser.add_argument("--size", type=int, default=32, help="pixels of a side")
    parser.add_argument("--channels", default="128,256,256,256", help="of the teacher's levels")
    parser.add_argument("--layers", type=int, default=2, help="residual blocks of a level")
    parser.add_argument("--teacher-steps", type=int, default=100_000)
    parser.add_argument("--teacher-rate", type=float, default=2e-4)
    parser.add_argument("--teacher-calls", type=int, default=50)
    parser.add_argument("--nfe", default="4,10,1,2,8")
    parser.add_argument("--no-presets", action="store_true", help="students of our recipe alone")
    parser.add_argument("--batch-size", type=int, default=128, help="of teacher and students")
    parser.add_argument("--solvers", default="unipc-leading,dpm++2-linspace,ddim-leading")
    parser.add_argument("--count", type=int, default=10_000, help="images of a row")
    parser.add_argument("--draw-size", type=int, default=500, help="images drawn at once")
    parser.add_argument("--reference", default="cifar10-train",
                        help="statistics, images or a data set to measure from")  # fmt: skip
    parser.add_argument("--detector", help="default: inception")
    parser.add_argument("--detector-weights", help="weights file of the Inception network")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"),
                        help="default: bfloat16 on a GPU")  # fmt: skip
    parser.add_argument("--device")
    args = parser.parse_args()
    begin, device = time.monotonic(), pick_device(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    dtype = args.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    torch.set_float32_matmul_precision("high")
    source = args.teacher or str(made_teacher(args))
    if not args.teacher:
        begin = time.monotonic()
    judge, planned = Judge(args, device), list(trainings(args))
    for row in judge.rows.values():
        judge.show(row)

    each = args.minutes * (1 - RESERVE) / len(planned)
    solver_calls = sorted({int(nfe) for nfe in args.nfe.split(",")} - {1})
    teacher = load_teacher(source, device)

    def solved(name: str, calls: int) -> None:
        for clip in dict.fromkeys((None, teacher.clip)):
            sampler = solver_sampler(teacher, name, calls, dtype=dtype, clip=clip)
            if (told := f"{sampler.name}, {calls}") not in judge.rows:
                judge.row(told, sampler)

    for name, options in planned:
        if name in judge.rows:
            continue
        if time.monotonic() - begin > 60 * args.minutes:
            print(f"{name}: no time left; the same command again goes on here", flush=True)
            return
        words = ["train", source, "--out", str(args.out / name), "--minutes", str(each), "--device",
                 str(device), "--dtype", dtype, *options, *args.train_options]  # fmt: skip
        try:
            hsivi(words, standalone_mode=False)
        except SystemExit as end:  # a training that diverged has said so
            print(f"{name}: ended with status {end.code}", flush=True)
            continue
        student = load_student(args.out / name, device)
        facts = {"minutes": round(student.info["seconds"] / 60, 2), "steps": student.info["step"]}
        judge.row(name, student_sampler(student, dtype=dtype), **facts)
        if name == planned[0][0]:  # what the first student is to be compared with, before the rest
            solved(args.solvers.split(",")[0], student.budget(None))
            solved("dpm++2-linspace", args.teacher_calls)
    for calls in solver_calls:
        for name in args.solvers.split(","):
            if time.monotonic() - begin < 60 * args.minutes:
                solved(name, calls)
    print(f"{(time.monotonic() - begin) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
