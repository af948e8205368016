"""train, sample and infer, killed: the same command again ends as if nothing had happened.

    python -m pytest -m slow -s tests/chaos

prints the seed, by which HSIVI_CHAOS_SEED repeats an attack of HSIVI_CHAOS_TRIES, and the table of
docs/experiments/chaos.md.
"""

import os
import random

import numpy as np
import pytest
import torch
from command import QUICK, TINY, save_detector, tree
from diffusers import DDPMPipeline, DDPMScheduler

from hsivi_cli.files.images import save_npz

from .attack import HEAD, attack

TRIES = int(os.environ.get("HSIVI_CHAOS_TRIES", 50))
SEED = int(os.environ.get("HSIVI_CHAOS_SEED", random.SystemRandom().randrange(10**6)))
INFERRED = ("model.safetensors", "metrics.jsonl", "summary.json")


@pytest.fixture(scope="module")
def place(tiny_unet, tmp_path_factory):
    """A folder with a teacher, a detector and a reference."""
    folder = tmp_path_factory.mktemp("chaos")
    pipeline = DDPMPipeline(unet=tiny_unet(**TINY), scheduler=DDPMScheduler())
    pipeline.save_pretrained(folder / "teacher")
    save_detector(folder / "detector")
    noise = torch.randint(256, (9, 8, 8, 1), dtype=torch.uint8)
    save_npz(noise, folder / "real.npz")
    return folder


def commands(place):
    """By verb: a function (out) -> words, and one (out) -> what must repeat."""
    judged = ("--reference", place / "real.npz", "--detector", place / "detector")
    often = ("--steps", 4, "--checkpoint-every", 1, "--eval-every", 1, "--eval-count", 9)
    layers = ("--layers", 2, "--width", 8, "--depth", 1, "--batch-size", 8, "--mixing", 8)
    few = ("--count", 50, "--steps", 4, "--checkpoint-every", 1, "--device", "cpu")

    def trained(out):
        files = {str(name): content for name, content in tree(out).items()}
        same = ("unet/", "chain", "metrics", "evaluations", "eval/", "model_index", "scheduler")
        return {name: content for name, content in files.items() if name.startswith(same)}

    def inferred(out):
        with np.load(out / "samples.npz") as file:
            return [file["x"].tobytes(), *((out / name).read_bytes() for name in INFERRED)]

    return {
        "train": (
            lambda out: ["train", place / "teacher", "--out", out, *QUICK, *judged, *often],
            trained,
        ),
        "sample": (
            lambda out: [
                *("sample", place / "teacher", "--solver", "ddim", "--nfe", 2, "--out", out),
                *("--count", 24, "--batch-size", 4, "--device", "cpu"),
            ],
            tree,
        ),
        "infer": (lambda out: ["infer", "banana", "--out", out, *layers, *few], inferred),
    }


def check(place, folder, verb, moments, tries):
    command, result = commands(place)[verb]
    tally = attack(command, result, folder, tries, SEED, moments)
    how = "at a random moment" if moments else "before a random write"
    print(f"\nseed {SEED}\n{HEAD}\n{tally.row(f'{verb}, killed twice {how}')}")
    assert not tally.faults, tally.faults
    return tally


@pytest.mark.parametrize("verb", ["train", "sample", "infer"])
def test_a_command_killed_before_a_write_ends_the_same(place, tmp_path, verb):
    assert check(place, tmp_path, verb, False, 3).killed >= 3


@pytest.mark.slow
@pytest.mark.parametrize("moments", [False, True], ids=["writes", "moments"])
@pytest.mark.parametrize("verb", ["train", "sample", "infer"])
def test_a_command_killed_a_hundred_times_ends_the_same(place, tmp_path, verb, moments):
    assert check(place, tmp_path, verb, moments, TRIES).killed >= TRIES
