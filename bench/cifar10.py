"""CIFAR-10 from nothing: a teacher, its students and the solvers on it, by the real FID.

    python bench/cifar10.py --data-root data --out runs/cifar10

trains a DDPM teacher of 36 M parameters, distils a student for each budget of --nfe, and compares
all with 50,000 images each; made for one GPU. --size 16 halves the images, so that a CPU goes the
same way (docs/experiments/cifar10.md has the command). Options after -- go to every `hsivi train`.
The same command again goes on where it stopped: teacher and students are kept in --out, drawn
images in `hsivi compare`'s cache.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from torch.nn.functional import adaptive_avg_pool2d

from hsivi_cli.files.images import save_npz
from hsivi_cli.metrics.statistics import image_batches

TRAIN_TEACHER = Path(__file__).parent.parent / "weights" / "train_teacher.py"


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


def run(*words) -> None:
    """A command of Python's, shown before it runs; its failure ends the bench."""
    command = [str(word) for word in words]
    print("+ python", *command, flush=True)
    subprocess.run([sys.executable, *command], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("train_options", nargs="*", help="after --: options of hsivi train")
    parser.add_argument("--images", default="cifar10-train", help="a data set, folder or .npz file")
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=32, help="pixels of a side")
    parser.add_argument("--channels", default="128,256,256,256", help="of the teacher's levels")
    parser.add_argument("--layers", type=int, default=2, help="residual blocks of a level")
    parser.add_argument("--teacher-steps", type=int, default=100_000)
    parser.add_argument("--teacher-rate", type=float, default=2e-4)
    parser.add_argument("--teacher-calls", default="50")
    parser.add_argument("--nfe", default="1,2,4,8")
    parser.add_argument("--batch-size", type=int, default=128, help="of teacher and students")
    parser.add_argument("--solvers", default="ddim,dpm++2,dpm++3,unipc,deis,ipndm")
    parser.add_argument("--count", type=int, default=50_000, help="images of a row")
    parser.add_argument("--reference-count", type=int, help="real images; default: all")
    parser.add_argument("--detector-weights", help="weights file of the Inception network")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    images = prepare(args.images, args.data_root, args.size, None, args.out / "images.npz")

    run(TRAIN_TEACHER, "--images", images, "--data-root", args.data_root,
        "--out", args.out / "teacher", "--flip", "--attention", 1, "--channels", args.channels,
        "--layers", args.layers, "--batch-size", args.batch_size, "--steps", args.teacher_steps,
        "--rate", args.teacher_rate)  # fmt: skip
    students = []
    for nfe in args.nfe.split(","):
        students.append(args.out / f"student-{nfe}")
        run("-m", "hsivi_cli", "train", args.out / "teacher" / "pipeline", "--nfe", nfe,
            "--out", students[-1], "--batch-size", args.batch_size,
            *args.train_options)  # fmt: skip
    count, file = args.reference_count, args.out / "reference.npz"
    reference = prepare(images, args.data_root, args.size, count, file)
    weights = ["--detector-weights", args.detector_weights] if args.detector_weights else []
    run("-m", "hsivi_cli", "compare", *students, args.out / "teacher" / "pipeline",
        "--nfe", args.nfe, "--solvers", args.solvers, "--teacher-calls", args.teacher_calls,
        "--reference", reference, "--data-root", args.data_root, "--detector", "inception",
        *weights, "--count", args.count, "--json", args.out / "report.json",
        "--html", args.out / "report.html")  # fmt: skip


if __name__ == "__main__":
    main()
