"""The command line within a test's own process: starting Python anew takes seconds."""

import importlib
import json
import math
import sys
from pathlib import Path

import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from hsivi_cli.cli import main
from hsivi_cli.files.images import open_images
from hsivi_cli.metrics.detectors import Classifier

ROOT = Path(__file__).parent.parent
# a network that trains at some 20 steps a second, in the options of conftest's tiny_unet
TINY = {
    "block_out_channels": (8,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "add_attention": False,
}
QUICK = (
    *("--device", "cpu", "--nfe", 2, "--batch-size", 4, "--fake-updates", 1, "--fake-warmup", 1),
    *("--student-rate", 1e-3, "--rate-warmup", 1, "--steps", 2, "--regress-steps", 0),
    *("--reference", "none", "--clip-x0", "off"),
)


def hsivi(*arguments, exit_code=0):
    """Run `hsivi ARGUMENTS`; the result has .stdout and .stderr. A bug is raised as it is."""
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == exit_code, result.output
    return result


def refusal(*arguments):
    """The one line on stderr with which `hsivi ARGUMENTS` refuses."""
    lines = hsivi(*arguments, exit_code=1).stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def train(teacher, out, *options, **more):
    """`hsivi train TEACHER --out OUT`, small unless the options say otherwise."""
    return hsivi("train", teacher, "--out", out, *QUICK, *options, **more)


def warnings_of(result):
    """The lines on stderr that warn."""
    return [line for line in result.stderr.splitlines() if line.startswith("warning: ")]


def rows(path):
    """The lines of a .jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def tree(folder):
    """Every file below a folder with its bytes."""
    return {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def read_folder(folder):
    """All images of a folder, uint8 [N, H, W, C], in the order of the file names."""
    return torch.cat([*open_images(folder)[1]])


def finite(row):
    return all(math.isfinite(value) for value in row.values())


def save_detector(folder, size=8, seed=3, channels=1):
    """A random small detector of size x size images, 6 features."""
    config = {"image_size": size, "in_channels": channels, "widths": [4], "feature_dim": 6}
    config |= {"classes": 2}
    torch.manual_seed(seed)
    network = Classifier(**config)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | {"name": "tiny"}))
    save_file(network.state_dict(), folder / "model.safetensors")


def load_bench(name, folder="bench"):
    """bench/NAME.py as a module: bench/ is no package."""
    folder = str(ROOT / folder)
    sys.path.insert(0, folder)  # they import one another, as scripts of one folder do
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)
