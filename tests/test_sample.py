"""`hsivi sample`: folders that are completed and never mixed, archives, grids and refusals."""

import json
import os
import re
import subprocess
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from command import QUICK, TINY, hsivi, read_folder, refusal, train, tree
from conftest import edit_json
from PIL import Image

from hsivi_cli.config import TrainConfig
from hsivi_cli.files import images, pngs
from hsivi_cli.files.folder import holding
from hsivi_cli.files.images import MARK, read_npz
from hsivi_cli.metrics.own import start_judge
from hsivi_cli.models.draw import draw, solver_sampler, student_sampler
from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.starts import choose_starts
from hsivi_cli.models.student import load_student
from hsivi_cli.verbs import sample


@pytest.fixture(scope="module")
def home(tiny_unet, tmp_path_factory):
    """A teacher, runs of it at 2 calls, and a class-conditional run."""
    folder = tmp_path_factory.mktemp("sample")
    for name, classes in (("teacher", None), ("classes", 3)):
        # predicting x0, a random network draws grey levels, not saturated pixels
        scheduler = diffusers.DDPMScheduler(prediction_type="sample")
        unet = tiny_unet(num_class_embeds=classes, **TINY)
        diffusers.DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder / name)
    train(folder / "teacher", folder / "run", "--steps", 0)
    train(folder / "teacher", folder / "other", "--steps", 0, "--noise-share", 0.3)
    train(folder / "classes", folder / "classes-run", "--steps", 0)
    return folder


def drawn(sampler, seeds, batch_size, labels=None):
    return torch.cat(list(draw(sampler, seeds, batch_size, "cpu", labels)))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def quiet_sample(*arguments):
    return hsivi("sample", *arguments, "--device", "cpu")


def test_a_folder_holds_one_png_a_seed(home, tmp_path):
    quiet_sample(home / "run", "--count", 5, "--out", tmp_path / "out")
    expected = [f"{seed:05d}.png" for seed in range(5)]
    assert names(tmp_path / "out") == [*expected, "hsivi-samples.json"]
    student = student_sampler(load_student(home / "run"))
    assert torch.equal(read_folder(tmp_path / "out"), drawn(student, range(5), 5))


def test_seeds_choose_the_images(home, tmp_path):
    quiet_sample(home / "run", "--seeds", "3-5", "--out", tmp_path / "some")
    quiet_sample(home / "run", "--seeds", "4", "--batch-size", 3, "--out", tmp_path / "one")
    assert names(tmp_path / "some")[:3] == ["00003.png", "00004.png", "00005.png"]
    student = student_sampler(load_student(home / "run"))
    assert torch.equal(read_folder(tmp_path / "some"), drawn(student, [3, 4, 5], 3))
    assert names(tmp_path / "one")[:1] == ["00004.png"]


def test_an_interrupted_folder_is_completed_not_redone(home, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = (home / "run", "--count", 11, "--batch-size", 4)
    quiet_sample(*arguments, "--out", whole)
    save_png = pngs.save_png

    def interrupted(batch, seeds, folder):
        if seeds[0] == 0:  # the first batch; others may be on their way
            save_png(batch[:2], seeds[:2], folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(pngs, "save_png", interrupted)
    monkeypatch.setattr(pngs, "WRITERS", 1)
    result = hsivi("sample", *arguments, "--out", broken, exit_code=130)
    assert "type the same line again" in result.stderr
    monkeypatch.undo()
    assert names(broken)[:2] == ["00000.png", "00001.png"]
    (broken / "00009.png").write_bytes((whole / "00009.png").read_bytes())
    before = {name: (broken / name).stat().st_mtime_ns for name in names(broken)}
    told = quiet_sample(*arguments, "--out", broken).stderr
    assert "8 images drawn, 2 calls each, 3 were there" in told
    assert tree(broken) == tree(whole)  # bit for bit, though in other batches
    assert {name: (broken / name).stat().st_mtime_ns for name in before} == before


@pytest.mark.parametrize(
    ("options", "differs"),
    [
        (("--dtype", "bfloat16"), "dtype"),
        (("--solver", "ddim", "--nfe", 2), "chain, solver"),
        (("--solver", "ddim", "--nfe", 3), "nfe"),
    ],
)
def test_a_folder_of_another_kind_is_refused_and_left_alone(home, tmp_path, options, differs):
    quiet_sample(home / "run", "--count", 2, "--out", tmp_path / "out")
    before = tree(tmp_path / "out")
    told = refusal("sample", home / "run", "--count", 4, "--out", tmp_path / "out", *options)
    assert "another kind" in told and differs in told
    assert tree(tmp_path / "out") == before


def test_of_two_kinds_that_claim_a_new_folder_at_once_one_is_refused(home, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def another_comes_first(folder):
        monkeypatch.undo()
        fresh = sample.is_fresh(folder)
        quiet_sample(home / "run", "--count", 2, "--out", out, "--dtype", "bfloat16")
        return fresh

    monkeypatch.setattr(sample, "is_fresh", another_comes_first)
    told = refusal("sample", home / "run", "--count", 2, "--out", out)
    assert "another kind (dtype differs)" in told
    assert json.loads((out / MARK).read_text())["dtype"] == "bfloat16" and len(names(out)) == 3


def test_a_run_and_samplers_never_share_a_folder(home, tmp_path):
    words = (home / "run", "--count", 1, "--out", tmp_path / "out")
    with holding(tmp_path / "out"):
        assert "another process runs in" in refusal("sample", *words)
    with holding(tmp_path / "out", shared=True):
        quiet_sample(*words)
        told = refusal("train", home / "teacher", "--out", tmp_path / "out", *QUICK)
        assert "another process runs in" in told


def test_a_folder_is_claimed_where_there_are_no_links(home, tmp_path, monkeypatch):
    def without(*places):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", without)
    quiet_sample(home / "run", "--count", 1, "--out", tmp_path / "out")
    assert names(tmp_path / "out") == ["00000.png", MARK]


def test_runs_of_the_same_weights_and_other_layers_are_not_mixed(home, tmp_path):
    quiet_sample(home / "run", "--count", 2, "--out", tmp_path / "out")
    told = refusal("sample", home / "other", "--count", 4, "--out", tmp_path / "out")
    assert "chain differs" in told
    grid = ("--grid", tmp_path / "g.png")
    assert "chain differs" in refusal("sample", home / "other", "--out", tmp_path / "out", *grid)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_folder_of_samples_is_refused(home, tmp_path, kind):
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
        (out / "cat.png").write_bytes(b"a cat")
    else:
        out.write_text("text")
    told = refusal("sample", home / "run", "--out", out)
    assert ("something else" if kind == "folder" else "is a file") in told
    assert kind == "file" or names(out) == ["cat.png"]


def test_an_archive_and_a_grid(home, tmp_path):
    out, grid = tmp_path / "below" / "x.npz", tmp_path / "g.png"
    quiet_sample(home / "run", "--count", 6, "--batch-size", 4, "--out", out, "--grid", grid)
    student = student_sampler(load_student(home / "run"))
    assert torch.equal(read_npz(out), drawn(student, range(6), 4))
    with np.load(out) as file:
        assert file.files == ["images"] and file["images"].dtype == np.uint8
    with Image.open(grid) as sheet:
        assert sheet.size == (3 * 8 + 2 * 2, 2 * 8 + 2)


def test_a_folder_and_a_grid_together(home, tmp_path):
    out, grid = tmp_path / "out", tmp_path / "g.png"
    quiet_sample(home / "run", "--count", 3, "--out", out, "--grid", grid)
    quiet_sample(home / "run", "--count", 3, "--out", out)
    student = student_sampler(load_student(home / "run"))
    assert torch.equal(read_folder(out), drawn(student, range(3), 3)) and grid.exists()


def test_labels_of_all_images_or_of_each(home, tmp_path):
    student = student_sampler(load_student(home / "classes-run"))
    for text, labels in (("2", [2, 2, 2]), ("0,1,2", [0, 1, 2]), (None, None)):
        out = tmp_path / f"{text}.npz"
        options = () if text is None else ("--labels", text)
        quiet_sample(home / "classes-run", "--count", 3, "--out", out, *options)
        assert torch.equal(read_npz(out), drawn(student, range(3), 3, labels))
    assert not torch.equal(read_npz(tmp_path / "2.npz"), read_npz(tmp_path / "0,1,2.npz"))


def test_a_folder_keeps_each_seeds_label_and_no_image_of_another(home, tmp_path):
    out, words = tmp_path / "out", (home / "classes-run", "--out", tmp_path / "out")
    quiet_sample(*words, "--seeds", "0-2", "--labels", "0,1,2")
    before = tree(out)
    told = refusal("sample", *words, "--seeds", "1-3", "--labels", "0,1,2")
    assert "the image of seed 1 with label 1, not 0" in told and tree(out) == before
    assert "labels differs" in refusal("sample", *words, "--seeds", "0-2")
    told = quiet_sample(*words, "--seeds", "1-4", "--labels", "1,2,2,0").stderr
    assert "2 images drawn, 2 calls each, 2 were there" in told
    student = student_sampler(load_student(home / "classes-run"))
    assert torch.equal(read_folder(out), drawn(student, range(5), 5, [0, 1, 2, 2, 0]))
    assert "labels   0, 1, 2" in hsivi("info", out).stdout


@pytest.mark.parametrize("source", ["teacher", "run"])
@pytest.mark.parametrize("name", ["unipc", "ddpm-trailing"])
def test_a_solver_draws_the_networks_own_images(home, tmp_path, source, name):
    options = ("--solver", name, "--nfe", 4, "--count", 3)
    quiet_sample(home / source, *options, "--out", tmp_path / "x.npz")
    network = load_teacher(str(home / source))
    expected = drawn(solver_sampler(network, name, 4, clip=network.clip), range(3), 3)
    assert torch.equal(read_npz(tmp_path / "x.npz"), expected)


@pytest.mark.parametrize(
    ("source", "options", "told"),
    [
        ("run", "--out {} --nfe 4", "trained for 2 calls, not 4: use --nfe 2"),
        ("run", "--out {} --count 3 --seeds 0-2", "exclude"),
        ("run", "--out {} --count 0", "--count 0"),
        ("run", "--out {} --seeds 5-3", "--seeds 5-3"),
        ("run", "--out {} --seeds a-b", "--seeds a-b"),
        ("run", "--out {} --seeds ²-3", "--seeds ²-3"),
        ("run", f"--out {{}} --seeds 0-{2**64}", "below"),
        ("run", "--out {} --batch-size 0", "--batch-size 0"),
        ("run", "--out {} --labels 1", "has no labels"),
        ("run", "--out {} --device nodevice", "nodevice"),
        ("classes-run", "--out {} --labels 3", "0..2"),
        ("classes-run", "--out {} --labels 0,1 --count 3", "--labels 0,1"),
        ("classes-run", "--out {} --labels cat", "--labels cat"),
        ("teacher", "--out {}", "teacher is no student: a teacher needs --nfe"),
        ("teacher", "--out {} --solver ddim", "--solver ddim needs --nfe"),
        ("teacher", "--out {} --solver rk45 --nfe 3", "no solver 'rk45'"),
        ("teacher", "--out {} --solver ddim-lu --nfe 3", "spacings"),
        ("teacher", "--out {} --solver ddim --nfe 0", "--nfe 0 must be at least 1"),
        ("nothing", "--out {}", "nothing"),
        ("run", "--out {0}.npz --grid {0}.npz", "named twice"),
        ("run", "--out {} --device meta", "--device meta"),
    ],
)
def test_a_refusal_says_what_to_do_and_writes_nothing(home, tmp_path, source, options, told):
    out = tmp_path / "out"
    line = refusal("sample", home / source, *options.format(out).split())
    assert told in line and not out.exists()


def test_what_was_typed_is_looked_at_before_a_teacher_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "load_teacher", None)  # would fail
    hub = ("sample", "someone/teacher", "--out", tmp_path / "x")
    assert "someone/teacher is no student: a teacher needs --nfe" in refusal(*hub)
    assert "no solver 'rk45'" in refusal(*hub, "--nfe", 3, "--solver", "rk45")


def test_a_place_below_a_file_is_refused_before_anything_is_drawn(home, tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "draw", None)
    (tmp_path / "file").write_text("mine")
    for option, place in (("--out", "x.npz"), ("--out", "folder"), ("--grid", "x.png")):
        told = refusal("sample", home / "run", option, tmp_path / "file" / place)
        assert "nothing can be written into" in told
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def grid_of(path):
    with Image.open(path) as sheet:
        return torch.from_numpy(np.array(sheet))


def test_without_out_a_runs_images_lie_in_a_folder_and_a_grid_of_its_name(home, empty):
    told = quiet_sample(home / "run", "--count", 70).stderr
    folder, grid = empty / "samples" / "run", empty / "samples" / "run.png"
    assert told.startswith("samples/run and samples/run.png: 70 images drawn, 2 calls each")
    assert len(names(folder)) == 71
    shown = read_folder(folder)[:64]
    assert torch.equal(grid_of(grid), images.grid_of(shown)[..., 0])
    assert "0 images drawn, 2 calls each, 64 were there" in quiet_sample(home / "run").stderr
    assert torch.equal(grid_of(grid), images.grid_of(shown)[..., 0])


def test_a_run_of_several_budgets_names_its_images_by_the_one_drawn(home, empty):
    train(home / "teacher", home / "several", "--steps", 0, "--nfe", "1,2")
    told = quiet_sample(home / "several", "--nfe", 1, "--count", 2).stderr
    assert told.startswith("samples/several-1 and samples/several-1.png: 2 images drawn, 1 call ")


def test_a_place_that_is_named_is_the_only_one(home, empty):
    quiet_sample(home / "run", "--count", 2, "--grid", "g.png")
    quiet_sample(home / "run", "--count", 2, "--out", "x.npz")
    assert names(empty) == ["g.png", "x.npz"]


def test_a_folders_grid_shows_what_was_there_and_what_is_new(home, tmp_path):
    out, grid = tmp_path / "out", tmp_path / "g.png"
    quiet_sample(home / "run", "--count", 2, "--out", out)
    told = quiet_sample(home / "run", "--count", 6, "--out", out, "--grid", grid).stderr
    assert "4 images drawn, 2 calls each, 2 were there" in told
    assert torch.equal(grid_of(grid), images.grid_of(read_folder(out))[..., 0])


def test_without_a_source_the_shipped_student_of_so_many_calls_draws(empty):
    told = quiet_sample("--nfe", 1, "--count", 2).stderr
    assert told.startswith("samples/embedded-students-1 and samples/embedded-students-1.png: 2 ")
    student = student_sampler(load_student("embedded:students/1"))
    drawn_now = read_folder(empty / "samples" / "embedded-students-1")
    assert torch.equal(drawn_now, drawn(student, range(2), 2))
    assert "embedded-students-4" in quiet_sample("--count", 1).stderr  # with no number of calls
    told = refusal("sample", "--nfe", 999)
    assert "no student of 999 calls" in told and " 1, 2, 3, 4, " in told
    assert "hsivi train --nfe 999" in told


def test_a_solver_without_a_source_is_on_the_embedded_teacher(empty):
    quiet_sample("--solver", "unipc", "--nfe", 2, "--count", 1)
    images_ = read_folder(empty / "samples" / "embedded-unipc-2")
    teacher = load_teacher()  # whose pipeline keeps x0 in range
    clipped = solver_sampler(teacher, "unipc", 2, clip=teacher.clip)
    assert teacher.clip and torch.equal(images_, drawn(clipped, [0], 1))
    quiet_sample("--solver", "unipc", "--nfe", 2, "--count", 1, "--clip-x0", "off", "--out", "off")
    plain = solver_sampler(teacher, "unipc", 2)
    assert torch.equal(read_folder(empty / "off"), drawn(plain, [0], 1))


def test_a_teacher_without_a_solver_draws_by_the_nearest_and_says_how_to_train(home, empty):
    teacher = home / "teacher"
    told = quiet_sample(teacher, "--nfe", 2, "--count", 3).stderr
    search = TrainConfig(nfe="2", start="auto", noise_share="0")
    loaded = load_teacher(str(teacher))
    name = choose_starts(search, loaded, start_judge(loaded))[2]
    assert f"--solver {name};" in told and f"hsivi train {teacher} --nfe 2" in told
    made = read_folder(empty / "samples" / f"teacher-{name}-2")
    assert torch.equal(
        made, drawn(solver_sampler(load_teacher(str(teacher)), name, 2), range(3), 3)
    )


def test_the_mark_in_a_folder_names_what_drew_it(home, tmp_path):
    quiet_sample(home / "run", "--count", 1, "--out", tmp_path / "out")
    mark = json.loads((tmp_path / "out" / "hsivi-samples.json").read_text())
    assert mark.keys() == {"network", "chain", "nfe", "solver", "labels", "dtype"}
    assert mark["nfe"] == 2 and re.match("[0-9a-f]{16} ", mark["network"])


def test_true_is_no_number_of_a_mark(home, tmp_path):
    folder = tmp_path / "out"
    quiet_sample(home / "classes-run", "--count", 1, "--labels", 1, "--out", folder)
    mark = json.loads((folder / MARK).read_text())
    again = ("sample", home / "classes-run", "--count", 1, "--labels", 1, "--out", folder)
    edit_json(folder / MARK, labels={"0": True})
    assert "holds the image of seed 0 with label True, not 1" in refusal(*again)
    edit_json(folder / MARK, labels=mark["labels"])
    hsivi(*again)


def test_a_picture_that_a_power_cut_has_shortened_is_drawn_again(home, tmp_path):
    quiet_sample(home / "run", "--count", 3, "--out", tmp_path / "out")
    before = tree(tmp_path / "out")
    for name, size in (("00000.png", 0), ("00002.png", 50)):
        file = tmp_path / "out" / name
        file.write_bytes(file.read_bytes()[:size])
    quiet_sample(home / "run", "--count", 3, "--out", tmp_path / "out")
    assert tree(tmp_path / "out") == before


def test_an_archive_takes_the_place_of_images_alone(home, tmp_path):
    archive = tmp_path / "x.NPZ"
    for count in (2, 3):
        quiet_sample(home / "run", "--count", count, "--out", archive)
        assert len(read_npz(archive)) == count
    np.savez(tmp_path / "labels.npz", labels=np.arange(3))
    before = tree(tmp_path)
    told = refusal("sample", home / "run", "--out", tmp_path / "labels.npz")
    assert "holds something else than images" in told and tree(tmp_path) == before


def test_what_tells_of_a_teacher_is_refused_of_a_run(save_teacher, tmp_path):
    train(save_teacher(**TINY), tmp_path / "run", "--steps", 0)
    told = refusal("sample", tmp_path / "run", "--subfolder", "x", "--variant", "fp16")
    assert "--variant and --subfolder tell of a teacher" in told


def test_what_a_killed_process_left_half_written_goes_and_what_a_living_one_writes_stays(
    save_teacher, tmp_path
):
    out = tmp_path / "out"
    command = ("sample", save_teacher(**TINY), "--solver", "ddim", "--nfe", 2, "--count", 4)
    out.mkdir()
    gone = subprocess.Popen(["true"])
    gone.wait()
    (out / f".hsivi-samples.json.{gone.pid}.tmp.json").write_text("{")  # before it had a mark
    hsivi(*command, "--out", out, "--device", "cpu")
    before = tree(out)
    assert len(before) == 5
    (out / f".00002.png.{gone.pid}.tmp").write_text("half")
    (out / f".00003.png.{os.getppid()}.tmp").write_text("half")
    hsivi(*command, "--out", out, "--device", "cpu")
    assert tree(out).keys() - before.keys() == {Path(f".00003.png.{os.getppid()}.tmp")}
