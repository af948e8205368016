"""Two processes are as good as one: what they draw, measure and train, and whose checkpoint goes on
alone.
"""

import json
import os
import subprocess
import sys

import diffusers
import numpy as np
import pytest
import torch
from command import QUICK, TINY, hsivi, read_folder, rows, save_detector, train, tree

from hsivi_cli.files.checkpoint import load_checkpoint
from hsivi_cli.metrics.statistics import load_statistics

pytestmark = pytest.mark.slow  # two processes that each load torch
VERBS = """
import json, sys
from hsivi_cli.cli import main
for words in json.loads(sys.argv[1]):
    main(words, standalone_mode=False)
"""
FIRST = ("--fake-warmup", 0, "--minutes", 1e-9)  # a training's first step, and its checkpoint


def commands(home, out):
    """A first step, images, a distance and a comparison, into a folder."""
    term = ("--out", out / "real", "--data", home / "real.npz", "--adversarial", 0.5, "--flip")
    judged = ("--detector", home / "detector", "--device", "cpu", "--batch-size", 4)
    return [
        ("train", home / "teacher", "--out", out / "begun", *QUICK, *FIRST),
        ("train", home / "teacher", *QUICK, *FIRST, *term),
        ("sample", home / "run", "--seeds", "3-13", "--batch-size", 4, "--device", "cpu",
         "--out", out / "images"),
        ("fid", home / "run", home / "real", "--count", 11, "--save-stats", out / "stats.npz",
         *judged),
        # of unipc two spacings fit
        ("compare", home / "run", "--nfe", 2, "--solvers", "unipc", "--count", 11,
         "--tune-count", 7, "--reference", home / "real", "--cache", out / "cache",
         "--json", out / "rows.json", "--grids", out / "grids", *judged),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def home(tiny_unet, tmp_path_factory):
    """What one process (one/) and two (two/) make of the same commands."""
    folder = tmp_path_factory.mktemp("processes")
    unet = tiny_unet(num_class_embeds=3, **TINY)
    scheduler = diffusers.DDPMScheduler(prediction_type="sample")
    diffusers.DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder / "teacher")
    save_detector(folder / "detector")
    train(folder / "teacher", folder / "run", "--steps", 1)
    hsivi("sample", folder / "run", "--count", 9, "--device", "cpu", "--out", folder / "real")
    images = read_folder(folder / "real").numpy()
    np.savez(folder / "real.npz", images=images, labels=np.arange(len(images)) % 3)
    for name in ("one", "two"):
        (folder / name).mkdir()
    told = [hsivi(*words).stdout for words in commands(folder, folder / "one")]
    (folder / "one.txt").write_text("".join(told))
    (folder / "verbs.py").write_text(VERBS)
    words = [list(map(str, words)) for words in commands(folder, folder / "two")]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2,
              "--redirects", 3, "--log-dir", folder / "logs",
              folder / "verbs.py", json.dumps(words)]  # fmt: skip
    done = subprocess.run(
        list(map(str, launch)), capture_output=True, text=True, timeout=600,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    errors = [file.read_text() for file in (folder / "logs").rglob("stderr.log")]
    assert done.returncode == 0 and len(errors) == 2, (done.stderr, errors)
    return folder


def test_images_of_two_processes_are_those_of_one(home):
    one, two = (tree(home / name / "images") for name in ("one", "two"))
    assert one == two and len(read_folder(home / "two" / "images")) == 11


def test_a_distance_of_two_processes_is_that_of_one_and_told_once(home):
    one, two = (load_statistics(home / name / "stats.npz") for name in ("one", "two"))
    assert one.moments.count == two.moments.count == 11
    torch.testing.assert_close(two.moments.mean, one.moments.mean)
    torch.testing.assert_close(two.moments.cov, one.moments.cov)
    assert torch.equal(two.features, one.features)
    told = "".join(file.read_text() for file in (home / "logs").rglob("stdout.log"))
    expected, _, table = (home / "one.txt").read_text().partition("calls ")
    assert expected.startswith("frechet") and told.startswith(expected)
    assert told.count("measured") == table.count("measured") == 2


def test_a_comparison_of_two_processes_is_that_of_one(home):
    one, two = (
        json.loads((home / name / "rows.json").read_text())["rows"] for name in ("one", "two")
    )
    assert [row["name"] for row in one] == [row["name"] for row in two] and len(one) == 2
    for ours, theirs in zip(two, one, strict=True):
        assert ours["distance"] == pytest.approx(theirs["distance"], rel=1e-6)
        assert ours["precision"] == theirs["precision"] and ours["recall"] == theirs["recall"]
    assert tree(home / "one" / "grids") == tree(home / "two" / "grids") != {}
    kept = [sorted(p.name for p in (home / name / "cache").iterdir()) for name in ("one", "two")]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("run", ["begun", "real"])  # alone, and with real images
def test_gradients_of_two_processes_are_those_of_one(home, run):
    one, two = (load_checkpoint(home / name / run / "checkpoint") for name in ("one", "two"))
    assert one[1]["round"] == two[1]["round"] == 1
    moments = [name for name in one[0] if name.endswith(".exp_avg")]  # of one gradient each
    assert any(name.startswith("student_optimizer") for name in moments)
    for name in moments:
        torch.testing.assert_close(two[0][name], one[0][name], rtol=1e-4, atol=1e-7)


def test_a_training_of_two_processes_goes_on_in_one(home):
    for name in ("one", "two"):
        train(home / "teacher", home / name / "begun", "--fake-warmup", 0)
    told, expected = (rows(home / name / "begun" / "metrics.jsonl") for name in ("two", "one"))
    assert [row["step"] for row in told] == [1, 2]
    for ours, theirs in zip(told, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
