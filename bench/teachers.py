"""Seven small teachers, one of every kind that hsivi takes, each with a detector for its images.

    python bench/teachers.py train --data-root data --out runs/teachers

trains them one after another, in the order of TEACHERS, on one core some 12 minutes each, and as
many steps on a GPU; the same command again goes on where it stopped. --data-root holds
Fashion-MNIST and CIFAR-10 as torchvision lays them out, or a split as an .npz file with `images`
and `labels` (cifar10-train.npz).
--out receives, for each data set and size,

    images/SET-SIZE-train.npz, -test.npz     images and labels
    detectors/SET-SIZE/detector              a classifier's folder, for --detector
    detectors/SET-SIZE/reference.npz         statistics of the train split, for --reference

and for each teacher NAME/pipeline, a diffusers DDPMPipeline, beside NAME/state.safetensors, from
which its training goes on. What the default recipe makes of them: bench/across.py.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from across import EMBEDDED, add_verbs
from cifar10 import TRAIN_TEACHER
from torch.nn.functional import interpolate

from hsivi_cli.files.images import labelled_images, read_labels, read_npz
from hsivi_cli.files.whole import replacing

TRAIN_DETECTOR = TRAIN_TEACHER.with_name("train_detector.py")


def run(*words) -> None:
    """A script of Python's, shown before it runs, in this process: importing takes long. Its
    failure ends the bench.
    """
    command, own = [str(word) for word in words], sys.argv
    print("+ python", *command, flush=True)
    try:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")
    finally:
        sys.argv = own


@dataclass(frozen=True)
class Recipe:
    """What a teacher learns.

    data, size  a data set of hsivi's, shrunk to size x size
    speed       steps a CPU minute, measured on one core
    options     of weights/train_teacher.py
    """

    data: str
    size: int
    speed: int
    options: str

    @property
    def images(self) -> str:
        """The name of its images, and of their detector."""
        return f"{self.data}-{self.size}"


TEACHERS = {
    "x0-scaled": Recipe("fashion-mnist", 16, 350, "--prediction sample --betas scaled_linear"),
    "v-cosine": Recipe(
        "fashion-mnist", 16, 380, "--prediction v_prediction --betas squaredcos_cap_v2"
    ),
    "colour": Recipe("cifar10", 24, 180, "--flip"),
    "eps-20": Recipe("fashion-mnist", 20, 250, ""),
    "classes": Recipe("fashion-mnist", 16, 380, "--classes --learned-variance"),
    "v-linear": Recipe("fashion-mnist", 16, 380, "--prediction v_prediction"),
    "x0-cosine": Recipe("fashion-mnist", 16, 380, "--prediction sample --betas squaredcos_cap_v2"),
}


# --------------------------------------------------------------------------------------- training


def prepare(recipe: Recipe, split: str, data_root: Path, file: Path) -> None:
    """Write one split's images, shrunk without aliasing, and labels to an .npz file."""
    name = f"{recipe.data}-{split}"
    own = data_root / f"{name}.npz"
    found = (read_npz(own), read_labels(own)) if own.exists() else labelled_images(name, data_root)
    images, labels = found
    pixels = images.permute(0, 3, 1, 2).float()
    small = interpolate(pixels, [recipe.size] * 2, mode="bilinear", antialias=True)
    small = small.round().clamp(0, 255).to(torch.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, images=small.permute(0, 2, 3, 1).numpy(), labels=labels.numpy())


def train(args: argparse.Namespace, teachers: dict[str, Recipe]) -> None:
    """The teachers named, one after another."""
    for name in args.only.split(","):
        train_one(name, teachers[name], args)


def train_one(name: str, recipe: Recipe, args: argparse.Namespace) -> None:
    """One teacher, after its images and their detector where they are not there yet."""
    files = {}
    for split in ("train", "test"):
        files[split] = args.out / "images" / f"{recipe.images}-{split}.npz"
        if not files[split].exists():
            prepare(recipe, split, args.data_root, files[split])
    detector = args.out / "detectors" / recipe.images
    if not (detector / "reference.npz").exists():
        run(TRAIN_DETECTOR, "--images", files["train"], files["test"], "--name", recipe.images,
            "--out", detector, "--epochs", args.detector_epochs)  # fmt: skip
    steps = args.steps or round(args.minutes * recipe.speed)
    run(TRAIN_TEACHER, "--images", files["train"], "--out", args.out / name, "--rate", args.rate,
        "--steps", steps, *recipe.options.split())  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("train", help="train the teachers and their detectors")
    verb.add_argument("--data-root", type=Path, default="data")
    verb.add_argument("--out", type=Path, default="runs/teachers")
    verb.add_argument("--only", default=",".join(TEACHERS), help="names, separated by commas")
    verb.add_argument("--minutes", type=float, default=11,
                      help="of CPU time a teacher, which fix its steps")  # fmt: skip
    verb.add_argument("--steps", type=int, help="of every teacher, whatever its speed")
    verb.add_argument("--rate", type=float, default=2e-3)
    verb.add_argument("--detector-epochs", type=int, default=5)
    verb.set_defaults(work=train)
    add_verbs(verbs, TEACHERS)
    args = parser.parse_args()
    for name in args.only.split(","):
        if name not in TEACHERS and (name != EMBEDDED or args.work is train):
            parser.error(f"no teacher {name}: there are {', '.join(TEACHERS)}")
    args.work(args, TEACHERS)


if __name__ == "__main__":
    main()
