"""What is attacked: tiny commands, and what of their results must repeat."""

import json

import numpy as np
import pytest
import torch
from command import QUICK, TINY, hsivi, save_detector, train, tree
from diffusers import DDPMPipeline, DDPMScheduler

from hsivi_cli.files.images import save_npz

INFER = (
    *("infer", "banana", "--layers", 2, "--width", 8, "--depth", 1, "--batch-size", 8),
    *("--mixing", 8, "--path-steps", 1, "--count", 50, "--steps", 4, "--checkpoint-every", 1),
    *("--device", "cpu"),
)
BOOST = (
    *("--calls", 2, "--trees", 2, "--repeats", 2, "--match", 1, "--leaves", 4, "--threads", 1),
    *("--checkpoint-every", 1, "--target", "y"),
)
INFERRED = ("model.safetensors", "metrics.jsonl", "summary.json")


@pytest.fixture(scope="session")
def place(tiny_unet, tmp_path_factory):
    """A folder with a teacher, a run, a detector and a reference."""
    folder = tmp_path_factory.mktemp("chaos")
    pipeline = DDPMPipeline(unet=tiny_unet(**TINY), scheduler=DDPMScheduler())
    pipeline.save_pretrained(folder / "teacher")
    train(folder / "teacher", folder / "run", "--steps", 0)
    save_detector(folder / "detector")
    rng = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (9, 8, 8, 1), dtype=torch.uint8, generator=rng)
    save_npz(noise, folder / "real.npz")
    write_table(folder / "table.csv")
    # these load what no child need load again
    hsivi(*INFER, "--out", folder / "inferred")
    hsivi("boost", folder / "table.csv", *BOOST, "--out", folder / "boosted")
    return folder


def write_table(file):
    """A table of a number, a category and a target."""
    draw = np.random.default_rng(0)
    size, red = draw.normal(size=60), draw.integers(2, size=60)
    y = 2 * size + red + 0.3 * draw.normal(size=60)
    lines = (f"{s:.4f},{('blue', 'red')[r]},{t:.4f}" for s, r, t in zip(size, red, y, strict=True))
    file.write_text("\n".join(["size,colour,y", *lines]) + "\n")


def trained(out):
    files = {str(name): content for name, content in tree(out).items()}
    same = ("unet/", "chain", "metrics", "evaluations", "eval/", "model_index", "scheduler")
    return {name: content for name, content in files.items() if name.startswith(same)}


def inferred(out):
    with np.load(out / "samples.npz") as file:
        return [file["x"].tobytes(), *((out / name).read_bytes() for name in INFERRED)]


def boosted(out):
    """All but what tells of seconds, and the checkpoints, which do too."""
    told = ("boost.json", "README.md", "checkpoint/")
    files = {str(name): content for name, content in tree(out).items()}
    return {name: content for name, content in files.items() if not name.startswith(told)}


def compared(out):
    rows = json.loads((out / "rows.json").read_text())["rows"]
    return [{key: row[key] for key in ("name", "distance", "recall")} for row in rows]


@pytest.fixture
def commands(place, coarse_pictures):
    """By name: a function (out) -> words, and one (out) -> what must repeat."""
    judged = ("--reference", place / "real.npz", "--detector", place / "detector")
    often = ("--steps", 4, "--checkpoint-every", 1, "--eval-every", 1, "--eval-count", 9)
    drawn = ("--count", 24, "--batch-size", 4, "--device", "cpu")

    def sample(solver):
        words = ("sample", place / "teacher", "--solver", solver, "--nfe", 2)
        return lambda out: [*words, *drawn, "--out", out]

    def compare(out):
        solvers = ("--solvers", "ddim-quad,unipc-quad", "--clip-x0", "off", "--count", 9)
        places = ("--cache", out / "cache", "--json", out / "rows.json")
        return ["compare", place / "run", *judged, *solvers, *places, "--device", "cpu"]

    def predict(out):
        words = ("boost", place / "boosted", "--predict", place / "table.csv", "--threads", 1)
        return [*words, "--out", out / "drawn.csv"]

    return {
        "train": (
            lambda out: ["train", place / "teacher", "--out", out, *QUICK, *judged, *often],
            trained,
        ),
        "sample": (sample("ddim"), tree),
        "sample by another": (sample("unipc"), tree),
        "infer": (lambda out: [*INFER, "--out", out], inferred),
        "boost": (lambda out: ["boost", place / "table.csv", *BOOST, "--out", out], boosted),
        "predict": (predict, tree),
        "compare": (compare, compared),
    }
