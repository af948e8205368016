"""`hsivi info`: what it says of runs, teachers and statistics files."""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from command import TINY, hsivi, refusal, save_detector, train

from hsivi_cli.files.images import save_npz
from hsivi_cli.files.places import embedded, embedded_names, weights_folder
from hsivi_cli.files.pngs import save_png
from hsivi_cli.metrics.frechet import Moments
from hsivi_cli.metrics.statistics import Statistics, save_statistics
from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.student import load_student


@pytest.fixture
def teacher(save_teacher):
    return save_teacher(**TINY)


def told_of(path):
    """The facts as JSON, after a check that the plain lines say the same."""
    facts = json.loads(hsivi("info", path, "--json").stdout)
    lines = hsivi("info", path).stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == list(facts)
    assert all(line.endswith(str(fact)) for line, fact in zip(lines, facts.values(), strict=True))
    return facts


def test_a_run_tells_its_teacher_calls_steps_and_layers(teacher, tmp_path):
    train(teacher, tmp_path / "run", "--noise-share", "0.25,1", "--grid", "0,300,650")
    facts = told_of(tmp_path / "run")
    assert facts["kind"] == "student" and facts["calls"] == "2" and facts["steps"] == "2 of 2"
    assert facts["teacher"] == f"{teacher} ({load_teacher(str(teacher)).digest})"
    assert facts["weights"] == load_student(tmp_path / "run").model.digest
    assert facts["times at 2 calls"] == "0, 300, 650"
    assert facts["noise shares at 2 calls"] == "0.25, 1"
    assert "sd of x_K at 2 calls" not in facts
    assert facts["kept"] == "not measured"


def test_a_run_that_ends_at_clean_data_tells_so(teacher, tmp_path):
    solver = ("--start", "unipc-leading", "--noise-share", 0.2)
    train(teacher, tmp_path / "run", *solver, "--steps", 0, "--top-sd", 1.05)
    facts = told_of(tmp_path / "run")
    assert facts["times at 2 calls"] == "clean data, 333, 666"
    assert facts["sd of x_K at 2 calls"] == "1.05"


def test_a_regressed_run_tells_so(teacher, tmp_path):
    train(teacher, tmp_path / "run", "--regress-steps", 3, "--noise-share", 1)
    assert told_of(tmp_path / "run")["steps"] == "2 of 2, after 3 of regression"


def test_a_run_tells_which_student_it_keeps(teacher, tmp_path):
    save_detector(tmp_path / "detector")
    save_npz(torch.randint(256, (30, 8, 8, 1), dtype=torch.uint8), tmp_path / "real.npz")
    judged = ("--reference", tmp_path / "real.npz", "--detector", tmp_path / "detector")
    train(teacher, tmp_path / "run", *judged, "--eval-count", 20)
    best = load_student(tmp_path / "run").info["best"]
    told = told_of(tmp_path / "run")["kept"]
    assert told.startswith(f"distance {best['distance']:.2f} at step 2 (20 images, tiny 8x8")


def test_a_teacher_tells_its_network_and_schedule(save_teacher):
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction", num_train_timesteps=500)
    folder = save_teacher(scheduler=scheduler, num_class_embeds=3, **TINY)
    facts, loaded = told_of(folder), load_teacher(str(folder))
    assert facts["kind"] == "teacher" and facts["weights"] == loaded.digest
    assert facts["parameters"] == sum(p.numel() for p in loaded.unet.parameters())
    assert (facts["image"], facts["classes"], facts["times"]) == ("1x8x8", 3, 500)
    assert facts["prediction"] == "v_prediction"


def test_a_run_of_inference_tells_its_target_and_layers(tmp_path):
    small = ("--layers", 2, "--width", 8, "--steps", 1, "--mixing", 8, "--count", 50)
    hsivi("infer", "banana", "--out", tmp_path / "y", *small, "--path-steps", 0)
    facts = told_of(tmp_path / "y")
    assert (facts["kind"], facts["target"], facts["layers"]) == ("inference", "banana", 2)
    assert facts["objective"] == "lb" and facts["steps"] == "1 of 1"
    (tmp_path / "y" / "infer.json").write_text("{}")
    assert "describes no run" in refusal("info", tmp_path / "y")


def test_a_run_of_boosted_trees_tells_its_columns_and_layers(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("a,b,y\n" + "".join(f"{i},{i % 3},{i % 7}\n" for i in range(40)))
    small = ("--calls", 2, "--trees", 2, "--match", 0, "--threads", 1)
    hsivi("boost", table, "--target", "y", "--out", tmp_path / "r", *small)
    facts = told_of(tmp_path / "r")
    assert (facts["kind"], facts["targets"], facts["columns"]) == ("boosted trees", "y", "a, b")
    assert (facts["layers"], facts["rows"]) == ("2 of 2", 36)
    whole = json.loads((tmp_path / "r" / "boost.json").read_text())
    (tmp_path / "r" / "boost.json").write_text(json.dumps(whole | {"seconds": 9**400}))
    assert "describes no run" in refusal("info", tmp_path / "r")
    (tmp_path / "r" / "boost.json").write_text("{}")
    assert "describes no run" in refusal("info", tmp_path / "r")


def test_a_teachers_variant_and_subfolder_are_options(save_teacher, tmp_path):
    save_teacher(variant="fp16", folder="deep/teacher", **TINY)
    origin = ("--subfolder", "teacher", "--variant", "fp16")
    told = json.loads(hsivi("info", tmp_path / "deep", *origin, "--json").stdout)
    assert told["kind"] == "teacher" and told["image"] == "1x8x8"


def test_folders_that_lead_to_a_teacher_are_told_as_such(teacher, tmp_path):
    cache, training = tmp_path / "models--x--y", tmp_path / "training"
    shutil.copytree(teacher, cache / "snapshots" / "aa11")
    shutil.copytree(teacher, training / "checkpoint-10")
    assert told_of(cache)["weights"] == load_teacher(str(teacher)).digest
    assert "give --subfolder checkpoint-10" in refusal("info", training)


def test_what_tells_of_a_teacher_is_refused_of_anything_else(teacher, tmp_path):
    train(teacher, tmp_path / "run", "--steps", 0)
    save_npz(torch.zeros(2, 8, 8, 1, dtype=torch.uint8), tmp_path / "images.npz")
    for path in (tmp_path / "run", tmp_path / "images.npz"):
        told = refusal("info", path, "--variant", "fp16")
        assert "--variant tells of a teacher" in told and f"{path} is none" in told


def test_a_statistics_file_tells_its_detector_and_count():
    facts = told_of(weights_folder() / "reference.npz")
    assert facts["kind"] == "statistics" and facts["count"] == 60000
    assert facts["detector"].startswith("fashion-mnist 28x28")


def test_a_plain_statistics_file_says_what_is_not_known(tmp_path):
    np.savez(tmp_path / "plain.npz", mu=np.zeros(3), sigma=np.eye(3))
    facts = told_of(tmp_path / "plain.npz")
    assert facts["detector"] == facts["count"] == facts["image"] == "unknown"
    assert facts["features"] == 3


def test_a_statistics_file_tells_its_images_size(tmp_path):
    moments = Moments(9, torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    save_statistics(tmp_path / "s.npz", Statistics(moments, "tiny", image=(8, 9, 3)))
    assert told_of(tmp_path / "s.npz")["image"] == "3x8x9"


def test_what_comes_with_the_package_is_told_by_name():
    facts = told_of("embedded:reference.npz")
    assert facts == told_of(weights_folder() / "reference.npz")
    alone = json.loads(hsivi("info", "--json").stdout)
    names = alone.pop("comes with hsivi").split(", ")
    assert alone == told_of("embedded:teacher")
    assert {"embedded:reference.npz", "embedded:students/4"} < set(names)


def test_every_name_that_is_told_is_there():
    for name in embedded_names():
        assert embedded(name).exists()


@pytest.mark.parametrize("ending", ["", ".npz"])
def test_images_tell_how_many_and_which_size(tmp_path, ending):
    images = torch.zeros(3, 8, 10, 1, dtype=torch.uint8)
    place = tmp_path / f"images{ending}"
    save_npz(images, place) if ending else save_png(images, range(3), place)
    assert told_of(place) == {"kind": "images", "count": 3, "image": "1x8x10"}


def test_a_folder_of_samples_tells_what_drew_it(teacher, tmp_path):
    solver = ("--solver", "ddim", "--nfe", 3, "--count", 2)
    hsivi("sample", teacher, *solver, "--out", tmp_path / "images")
    facts = told_of(tmp_path / "images")
    network = f"{load_teacher(str(teacher)).digest} epsilon"
    assert facts == {
        "kind": "samples",
        "count": 2,
        "image": "1x8x8",
        "network": network,
        "nfe": 3,
        "solver": "ddim",
        "dtype": "float32",
    }


def test_trained_betas_are_told_from_first_to_last(save_teacher):
    betas = np.linspace(2e-4, 0.03, 50)
    folder = save_teacher(scheduler=diffusers.DDPMScheduler(50, trained_betas=betas), **TINY)
    facts = told_of(folder)
    name = load_teacher(str(folder)).schedule_name  # by which stored students know their teacher
    assert facts["schedule"] == f"{name}, betas 0.0002 to 0.03" and "betas 0" not in name


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nothing", "embedded:students/4"),
        ("missing.npz", "missing.npz"),
        ("empty", "empty is an empty folder: a training leaves one that stopped before"),
        ("hidden", "hidden is an empty folder"),  # but for what a kill left half written
        ("notes", "no image in this folder"),
        ("readme.txt", "there is no teacher at"),
    ],
)
def test_anything_else_is_refused_in_a_line(tmp_path, name, told):
    for folder, file in (("empty", None), ("hidden", ".x.json.1.tmp.json"), ("notes", "a.txt")):
        (tmp_path / folder).mkdir()
        if file:
            (tmp_path / folder / file).touch()
    (tmp_path / "readme.txt").write_text("text")
    assert told in refusal("info", tmp_path / name)


def test_an_embedded_name_that_there_is_not_is_told_with_those_there_are():
    told = refusal("info", "embedded:students/999")
    assert "embedded:students/999 does not come with hsivi" in told and "students/4" in told


def test_a_run_that_has_no_student_yet_says_so(teacher, tmp_path):
    run = tmp_path / "run"
    train(teacher, run, "--steps", 0)
    (run / "chain.safetensors").unlink()
    assert "holds no whole student: its training stopped" in refusal("info", run)


def test_a_damaged_label_of_a_sample_is_told_as_it_stands(tmp_path):
    save_png(torch.zeros(1, 8, 8, 1, dtype=torch.uint8), [0], tmp_path / "drawn")
    (tmp_path / "drawn" / "hsivi-samples.json").write_text('{"labels": {"0": {}, "1": 2}}')
    assert told_of(tmp_path / "drawn")["labels"] == "2, {}"
