"""Files that are named to be written: what they may take the place of."""

import json
import os
import shutil

import diffusers
import numpy as np
import pytest
import torch
from command import TINY, hsivi, refusal, save_detector, train, tree
from PIL import Image

from hsivi_cli.errors import HsiviError
from hsivi_cli.files.images import save_npz
from hsivi_cli.files.places import check_file


@pytest.fixture(scope="module")
def made(tiny_unet, tmp_path_factory):
    """A teacher, a run of it, a detector and images to measure from."""
    folder = tmp_path_factory.mktemp("outputs")
    scheduler = diffusers.DDPMScheduler(prediction_type="sample")
    pipeline = diffusers.DDPMPipeline(unet=tiny_unet(**TINY), scheduler=scheduler)
    pipeline.save_pretrained(folder / "teacher")
    train(folder / "teacher", folder / "run", "--steps", 0)
    save_detector(folder / "detector")
    rng = torch.Generator().manual_seed(0)
    real = torch.randint(256, (60, 8, 8, 1), dtype=torch.uint8, generator=rng)
    save_npz(real, folder / "real.npz")
    return folder


@pytest.fixture
def home(made, tmp_path):
    """A copy of all that, which may be spoilt."""
    shutil.copytree(made, tmp_path / "home")
    return tmp_path / "home"


def words_of(home, option):
    """A command that writes what `option` names."""
    judged = ("--detector", home / "detector")
    if option in ("--grid", "--out"):
        return ("sample", home / "run", "--count", 2, "--device", "cpu")
    if option == "--save-stats":
        return ("fid", home / "real.npz", *judged, "--device", "cpu")
    small = ("--count", 40, "--solvers", "none", "--device", "cpu", "--cache", home / "cache")
    return ("compare", home / "run", "--reference", home / "real.npz", *judged, *small)


def picture(file):
    Image.new("L", (4, 4)).save(file, format="PNG")


# by option: a name, and what may lie there that is not ours
FOREIGN = [
    ("--grid", "mine.png", picture),
    ("--grid", "thesis.tex", lambda file: file.write_text("years of work")),
    ("--out", "mine.npz", lambda file: np.savez(file, images=np.zeros(3), labels=np.zeros(3))),
    ("--out", "mine.npz", lambda file: np.savez(file, images=np.zeros((2, 4, 4, 1), np.uint8))),
    ("--save-stats", "mine.npz", lambda file: np.savez(file, mu=np.zeros(2), sigma=np.eye(2))),
    ("--save-stats", "mine.npz", lambda file: save_npz(torch.zeros(2, 4, 4, 1).byte(), file)),
    ("--json", "mine.json", lambda file: file.write_text('{"rows": []}')),
    ("--json", "mine.json", lambda file: file.write_bytes(b"\xff")),
    ("--html", "mine.html", lambda file: file.write_text("<!doctype html>")),
    ("--plot", "mine.png", picture),
]


@pytest.mark.parametrize(("option", "name", "write"), FOREIGN)
def test_what_is_not_hsivis_own_is_written_over_by_force_alone(home, option, name, write):
    write(home / name)
    before = tree(home)
    told = refusal(*words_of(home, option), option, home / name)
    assert "holds something else" in told and "--force" in told and tree(home) == before
    hsivi(*words_of(home, option), option, home / name, "--force")
    written = (home / name).read_bytes()
    assert written != before[(home / name).relative_to(home)]
    hsivi(*words_of(home, option), option, home / name)  # now it is ours


def test_a_folder_of_ones_own_pictures_takes_no_grids(home):
    (home / "holiday").mkdir()
    picture(home / "holiday" / "beach.png")
    words = (*words_of(home, "--grids"), "--grids", home / "holiday")
    assert "beach.png exists and holds something else" in refusal(*words)
    (home / "holiday" / "beach.png").unlink()
    for _ in range(2):
        hsivi(*words)


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--json", "run/hsivi.json"),
        ("--grid", "run/unet/diffusion_pytorch_model.safetensors"),
        ("--grid", "run/eval/step-000001-2.png"),
        ("--html", "teacher/unet/config.json"),
        ("--plot", "detector/model.safetensors"),
        ("--out", "link.npz"),
        ("--save-stats", "detector/config.json"),
        ("--json", "cache/x.json"),
        ("--json", "boosted/boost.json"),
    ],
)
def test_nothing_in_a_run_a_model_or_what_is_read_is_ever_written_over(home, option, name):
    for folder in ("run/eval", "cache", "boosted"):
        (home / folder).mkdir()
    (home / "boosted" / "boost.json").write_text("{}")
    hsivi("sample", home / "run", "--count", 2, "--device", "cpu", "--grid", home / "grid.png")
    (home / "grid.png").rename(home / "run/eval/step-000001-2.png")
    table = {"rows": [], "training": [], "about": {}}
    (home / "cache" / "x.json").write_text(json.dumps(table))
    save_npz(torch.zeros(2, 4, 4, 1).byte(), home / "run" / "drawn.npz")
    os.symlink(home / "run" / "drawn.npz", home / "link.npz")
    before = tree(home)
    told = refusal(*words_of(home, option), option, home / name, "--force")
    assert "in which nothing is written over" in told and tree(home) == before


def test_a_new_file_may_lie_beside_a_run(home):
    hsivi(*words_of(home, "--json"), "--json", home / "run" / "rows.json")
    assert (home / "run" / "rows.json").exists()


def test_a_pipe_or_a_device_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", os.devnull):
        with pytest.raises(HsiviError, match="is a device or a pipe"):
            check_file(place)
