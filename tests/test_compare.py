"""`hsivi compare`: rows, verdicts and files, and that nothing is drawn twice."""

import json
import math
import os
import re
import shutil
import statistics
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from command import TINY, hsivi, refusal, save_detector, train
from conftest import edit_json
from safetensors.torch import load_file, save_file

from hsivi_cli.config import CompareConfig
from hsivi_cli.files.images import NotFinite, grid_png, save_npz
from hsivi_cli.files.places import shipped_students, weights_folder
from hsivi_cli.metrics import judge, recorded, ruler, tuning
from hsivi_cli.metrics.detectors import load_detector
from hsivi_cli.metrics.frechet import frechet_distance, kernel_distance, standard_error
from hsivi_cli.metrics.statistics import Statistics, moments_of, random_rows, save_statistics
from hsivi_cli.models.draw import draw, solver_sampler, student_sampler
from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.spacings import solver_names
from hsivi_cli.models.student import load_student
from hsivi_cli.report import page as pages
from hsivi_cli.report import plots, sentences
from hsivi_cli.report import rows as report
from hsivi_cli.verbs import compare as verb


@pytest.fixture(scope="module")
def home(tiny_unet, tmp_path_factory):
    """Two teachers, runs of 2 and 3 calls, a detector and images to measure from."""
    folder = tmp_path_factory.mktemp("compare")
    for seed, name in enumerate(("teacher", "stranger")):
        # predicting x0, a random network draws grey levels, not saturated pixels
        scheduler = diffusers.DDPMScheduler(prediction_type="sample")
        unet = tiny_unet(seed=seed, **TINY)
        diffusers.DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder / name)
    train(folder / "teacher", folder / "two", "--steps", 1)
    train(folder / "teacher", folder / "three", "--steps", 0, "--nfe", 3)
    train(folder / "stranger", folder / "far", "--steps", 0)
    save_detector(folder / "detector")
    rng = torch.Generator().manual_seed(0)
    real = torch.randint(256, (60, 8, 8, 1), dtype=torch.uint8, generator=rng)
    save_npz(real, folder / "real.npz")
    return folder


@pytest.fixture
def measure(home, tmp_path):
    """A function (*arguments) -> rows and result of a small comparison with a cache of its own."""

    def run(*arguments):
        result = hsivi("compare", *small(home, tmp_path), *arguments)
        return json.loads((tmp_path / "rows.json").read_text())["rows"], result

    return run


def small(home, tmp_path):
    return (
        *("--device", "cpu", "--reference", home / "real.npz", "--detector", home / "detector"),
        *("--count", 40, "--tune-count", 20, "--batch-size", 16, "--cache", tmp_path / "cache"),
        *("--json", tmp_path / "rows.json", "--clip-x0", "off"),
    )


@pytest.fixture
def drawings(monkeypatch):
    """(name, calls, seeds) of everything that a comparison draws, as it goes on."""
    seen, real = [], ruler.draw

    def spied(sampler, seeds, *rest):
        seen.append((sampler.name, sampler.nfe, seeds))
        return real(sampler, seeds, *rest)

    monkeypatch.setattr(ruler, "draw", spied)
    return seen


def distance_of(sampler, home, seeds):
    detector = load_detector(str(home / "detector"))
    drawn, _ = moments_of(draw(sampler, seeds, 16, "cpu"), detector)
    with_real = moments_of([torch.from_numpy(real_images(home))], detector)[0]
    return frechet_distance(drawn, with_real)


def real_images(home):
    with np.load(home / "real.npz") as file:
        return file["images"]


def test_a_row_holds_what_the_formats_promise_and_the_distance_is_right(home, measure):
    rows, _ = measure(home / "two", "--solvers", "ddim-quad", "--teacher-calls", 6)
    student, solver, teacher, stochastic = rows
    for row in rows:
        keys = {"name", "kind", "nfe", "distance", "count", "seconds", "how"}
        assert keys <= row.keys() and row["count"] == 40 and row["seconds"] > 0
        assert row["how"] == "measured" and row["distances"] == [row["distance"]]
        assert 0 <= row["precision"] <= 1 and 0 <= row["recall"] <= 1
    assert (student["name"], student["kind"], student["nfe"]) == (str(home / "two"), "student", 2)
    assert (solver["name"], solver["kind"], solver["nfe"]) == ("ddim-quad", "solver", 2)
    assert (teacher["name"], teacher["kind"], teacher["nfe"]) == ("dpm++2-linspace", "teacher", 6)
    assert (stochastic["name"], stochastic["nfe"]) == ("sde-dpm++3-auto", 6)
    loaded = load_teacher(str(home / "teacher"))
    for row, sampler in (
        (student, student_sampler(load_student(home / "two"))),
        (solver, solver_sampler(loaded, "ddim-quad", 2)),
        (teacher, solver_sampler(loaded, "dpm++2-linspace", 6)),
        (stochastic, solver_sampler(loaded, "sde-dpm++3-auto", 6)),
    ):
        assert row["distance"] == pytest.approx(distance_of(sampler, home, range(40)), rel=1e-9)


def test_the_teachers_own_line_is_drawn_by_every_solver_named_for_it(home, measure):
    options = ("--solvers", "none", "--teacher-calls", "3,5", "--clip-x0", "off")
    rows, _ = measure(home / "two", *options, "--teacher-solver", "unipc,ddpm-trailing")
    drawn = [(row["name"], row["nfe"]) for row in rows if row["kind"] == "teacher"]
    wanted = [(name, nfe) for nfe in (3, 5) for name in ("unipc", "ddpm-trailing")]
    assert sorted(drawn) == sorted(wanted)
    ancestral = solver_sampler(load_teacher(str(home / "teacher")), "ddpm-trailing", 5)
    found = next(row for row in rows if (row["name"], row["nfe"]) == ("ddpm-trailing", 5))
    assert found["distance"] == pytest.approx(distance_of(ancestral, home, range(40)), rel=1e-9)


def test_a_second_run_draws_nothing_and_says_the_same(home, measure, drawings):
    arguments = (home / "two", "--solvers", "ddim,deis", "--teacher-calls", 4)
    first, told = measure(*arguments)
    assert drawings
    drawings.clear()
    second, again = measure(*arguments)
    assert not drawings and second == first and again.stdout == told.stdout
    third, _ = measure(*arguments, "--teacher-calls", 5)  # only what is new
    new = [("dpm++2-linspace", 5), ("sde-dpm++3-auto", 5)]
    assert [(name, nfe) for name, nfe, _ in drawings] == new
    assert third[:-2] == first[:-2]


def test_a_draw_is_kept_by_all_that_decides_it(home, tmp_path, monkeypatch):
    sampler, cpu = student_sampler(load_student(home / "two")), torch.device("cpu")
    config = CompareConfig((), cache=str(tmp_path), detector=str(home / "detector"))
    opened = judge.open_judge(config, str(home / "real.npz"), cpu)

    def file(seed=0, count=40, device=cpu, sampler=sampler, judge=opened, **changes):
        settings = replace(config, **changes)
        return ruler.Ruler(settings, judge, device).file(sampler, seed, count)

    graphics = torch.device("cuda")  # never drawn on here
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "one")
    files = {
        *(file(), file(seed=1), file(count=41), file(dtype="bfloat16"), file(batch_size=7)),
        file(judge=judge.Judge(load_detector("fashion-mnist"), opened.reference)),
        *(file(sampler=replace(sampler, digest="other")), file(device=graphics)),
        file(sampler=replace(sampler, log_scale=sampler.log_scale + 1)),
    }
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "another")
    assert len(files | {file(device=graphics)}) == 10
    assert file(repeats=3, seed=0) in files and file(plot="x.png") in files


def test_what_another_machine_drew_is_read_without_its_speed(home, measure, monkeypatch):
    arguments = (home / "two", "--solvers", "none")
    (row,), told = measure(*arguments)
    assert row["seconds"] > 0 and "images/s" in told.stdout
    monkeypatch.setattr(ruler.platform, "node", lambda: "elsewhere")
    (again,), told = measure(*arguments)
    assert again == row | {"seconds": None} and "images/s" not in told.stdout


def without_features(archive, note):
    with np.load(archive) as file:
        few = {key: file[key] for key in file.files if key != "features"}
    np.savez(archive, **few)


def of_another_mean(archive, note):
    with np.load(archive) as file:
        other = {key: file[key] for key in file.files}
    np.savez(archive, **other | {"mu": other["mu"] + 1})


def of_other_seconds(archive, note):
    told = json.loads(note.read_text())
    note.write_text(json.dumps(told | {"seconds": "long"}))


@pytest.mark.parametrize("damage", [without_features, of_another_mean, of_other_seconds])
def test_a_cache_that_is_not_as_it_was_written_is_drawn_again(
    home, measure, tmp_path, drawings, damage
):
    before, _ = measure(home / "two", "--solvers", "none")
    (note,) = (tmp_path / "cache").glob("*.json")
    damage(note.with_suffix(".npz"), note)
    drawings.clear()
    after, _ = measure(home / "two", "--solvers", "none")
    assert len(drawings) == 1 and after[0]["distance"] == before[0]["distance"]


def test_a_damaged_cache_is_drawn_again(home, measure, tmp_path, drawings):
    first, _ = measure(home / "two", "--solvers", "none")
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(b"damaged")
    drawings.clear()
    second, _ = measure(home / "two", "--solvers", "none")
    assert len(drawings) == 1 and second[0]["distance"] == first[0]["distance"]


def test_grids_show_the_images_that_were_measured_without_drawing_them_again(
    home, measure, tmp_path, drawings
):
    arguments = (home / "two", "--solvers", "none", "--grids", tmp_path / "grids")
    measure(*arguments)
    drawings.clear()
    measure(*arguments)
    assert not drawings
    (file,) = (tmp_path / "grids").iterdir()
    sampler = student_sampler(load_student(home / "two"))
    shown = torch.cat(list(draw(sampler, range(40), 16, "cpu")))[: ruler.GRID_COUNT]
    assert file.read_bytes() == grid_png(shown)
    (kept,) = (tmp_path / "cache").glob("*.first.npz")
    kept.unlink()  # a cache that has lost them draws them again
    measure(*arguments)
    assert [seeds for _, _, seeds in drawings] == [range(ruler.GRID_COUNT)]


def test_all_rows_use_the_same_seeds_and_repeats_use_others(home, measure, drawings):
    arguments = ("--solvers", "ddim-linspace", "--repeats", 2, "--seed", 100)
    rows, result = measure(home / "two", home / "three", *arguments)
    assert {seeds for _, _, seeds in drawings} == {range(100, 140), range(140, 180)}
    assert len(drawings) == 2 * len(rows) == 2 * 4
    for row in rows:
        assert row["distance"] == pytest.approx(sum(row["distances"]) / 2)
        low, high = sorted(row["distances"])
        assert f"{low:.2f}-{high:.2f}" in result.stdout and low < high


def test_the_error_of_a_row_is_that_of_its_images_or_of_its_repeats(home, measure):
    (alone,), result = measure(home / "two", "--solvers", "none")
    detector, sampler = (
        load_detector(str(home / "detector")),
        student_sampler(load_student(home / "two")),
    )
    real, _ = moments_of([torch.from_numpy(real_images(home))], detector)

    def error(seeds):
        seen, features = moments_of(draw(sampler, seeds, 16, "cpu"), detector, keep_features=True)
        return standard_error(seen, real, features)

    # the cache keeps features in float16
    assert alone["standard_error"] == pytest.approx(error(range(40)), rel=1e-2)
    assert f"{alone['standard_error']:.2f}" in result.stdout.splitlines()[1].split()
    (twice,), _ = measure(home / "two", "--solvers", "none", "--repeats", 2)
    of_images = math.hypot(error(range(40)), error(range(40, 80))) / 2
    of_sets = statistics.stdev(twice["distances"]) / math.sqrt(2)
    assert twice["standard_error"] == pytest.approx(max(of_images, of_sets), rel=1e-2)


def test_each_run_is_compared_at_the_calls_it_was_trained_for(home, measure):
    rows, _ = measure(home / "two", home / "three", "--solvers", "none")
    assert [(row["name"], row["nfe"]) for row in rows] == [
        (str(home / "two"), 2),
        (str(home / "three"), 3),
    ]
    rows, _ = measure(home / "three", "--nfe", "2,3", "--solvers", "ddim-linspace")
    assert [(row["kind"], row["nfe"]) for row in rows] == [
        ("solver", 2),
        ("student", 3),
        ("solver", 3),
    ]


@pytest.mark.parametrize("family", ["ddim", "unipc"])
def test_a_family_is_compared_at_its_best_spacing(home, measure, family):
    rows, _ = measure(home / "teacher", "--nfe", "3", "--solvers", family)
    loaded, tuning = load_teacher(str(home / "teacher")), {}
    for name in solver_names((family,)):
        tuning[name] = distance_of(solver_sampler(loaded, name, 3), home, range(20))
    assert [row["name"] for row in rows] == [min(tuning, key=tuning.get)]


def test_spacings_that_do_not_fit_the_calls_are_passed_over(home, measure):
    rows, _ = measure(
        home / "teacher", "--nfe", 6, "--solvers", "dpm++2,unipc"
    )  # karras visits a time twice
    assert {row["name"].split("-")[0] for row in rows} == {"dpm++2", "unipc"}


def test_an_untrained_student_of_a_solver_is_as_far_as_that_solver(home, measure, tmp_path):
    deis = ("--start", "deis", "--noise-share", 0, "--steps", 0)
    train(home / "teacher", tmp_path / "deis", *deis)
    (student, solver), _ = measure(tmp_path / "deis", "--solvers", "deis-linspace")
    assert student["distance"] == pytest.approx(solver["distance"], rel=1e-9)


def test_students_of_different_teachers_are_warned_of_and_need_no_solver(home, measure):
    rows, result = measure(home / "two", home / "far")
    assert "warning: students of different teachers" in result.stderr
    assert str(home / "stranger") in result.stderr
    assert [row["kind"] for row in rows] == ["student"] * 2


def test_a_teacher_that_is_gone_is_warned_of(home, measure, tmp_path):
    shutil.copytree(home / "two", tmp_path / "run")
    info = json.loads((tmp_path / "run" / "hsivi.json").read_text())
    info["teacher"]["name"] = str(tmp_path / "gone")
    (tmp_path / "run" / "hsivi.json").write_text(json.dumps(info))
    rows, result = measure(tmp_path / "run")
    assert "warning: the teacher of" in result.stderr and [r["kind"] for r in rows] == ["student"]
    rows, _ = measure(tmp_path / "run", home / "teacher", "--solvers", "ddim-linspace")
    assert [row["kind"] for row in rows] == ["student", "solver"]


def test_a_student_finds_its_teacher_by_variant_and_subfolder(home, measure, tmp_path, tiny_unet):
    scheduler = diffusers.DDPMScheduler(prediction_type="sample")
    pipe = diffusers.DDPMPipeline(unet=tiny_unet(seed=5, **TINY), scheduler=scheduler)
    pipe.save_pretrained(tmp_path / "deep" / "teacher", variant="fp16")
    origin = ("--variant", "fp16", "--subfolder", "teacher")
    train(tmp_path / "deep", tmp_path / "run", *origin, "--steps", 0)
    rows, result = measure(tmp_path / "run", "--solvers", "ddim-quad")
    assert {row["kind"] for row in rows} == {
        "student",
        "solver",
    } and "not here" not in result.stderr
    rows, _ = measure(tmp_path / "deep", *origin, "--nfe", 2, "--solvers", "ddim-quad")
    assert [row["kind"] for row in rows] == ["solver"]


def test_files_are_written_and_the_page_stands_alone(home, measure, tmp_path):
    plot, page, grids = tmp_path / "plot.png", tmp_path / "page.html", tmp_path / "grids"
    arguments = ("--plot", plot, "--html", page, "--grids", grids, "--teacher-calls", 4)
    rows, result = measure(home / "two", "--solvers", "ddim", *arguments)
    assert plot.read_bytes().startswith(b"\x89PNG")
    text = page.read_text()
    assert "://" not in text
    assert len(re.findall("<img", text)) == 2 + len(rows)  # by calls and by minutes of training
    assert len(re.findall('src="data:image/png;base64,', text)) == 2 + len(rows)
    for row in rows:
        assert row["name"] in text and f"{row['distance']:.2f}" in text
        assert row["name"] in result.stdout and f"{row['distance']:.2f}" in result.stdout
    assert len(list(grids.glob("*.png"))) == len(rows)
    about = json.loads((tmp_path / "rows.json").read_text())["about"]
    assert about["detector"].startswith("tiny 8x8") and "60 images" in about["reference"]


def test_the_cache_lies_where_the_environment_says(home, measure, tmp_path, monkeypatch):
    monkeypatch.setenv("HSIVI_CACHE", str(tmp_path / "environment"))
    arguments = [a for a in small(home, tmp_path) if a not in ("--cache", tmp_path / "cache")]
    hsivi("compare", home / "two", "--solvers", "none", *arguments)
    assert len(list((tmp_path / "environment").glob("*.json"))) == 1


def test_a_user_without_a_home_is_asked_for_a_cache(home, tmp_path, monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("HSIVI_CACHE", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 5)  # whom the system does not know
    arguments = [a for a in small(home, tmp_path) if a not in ("--cache", tmp_path / "cache")]
    told = refusal("compare", home / "two", "--solvers", "none", *arguments)
    assert "--cache" in told and "HSIVI_CACHE" in told


@pytest.mark.parametrize(
    ("source", "options", "told"),
    [
        ("two", "--nfe 5", "trained for 2 calls, not 5"),
        ("two", "--nfe two", "--nfe two"),
        ("two", "--nfe 0", "--nfe 0"),
        ("teacher", "", "--nfe is needed"),
        ("two", "--solvers edm", "no solver 'edm'"),
        ("two", "--solvers euler-a", "no solver 'euler-a' (it adds noise at every step"),
        ("teacher", "--solvers none --nfe 2", "nothing to compare"),
        ("two", "--count 1", "--count 1"),
        ("two", "--repeats 0", "--repeats 0"),
        ("two", "--teacher-calls -3", "--teacher-calls"),
        ("two", "--teacher-calls 4 --teacher-solver heun", "ask for 3 or 5"),
        ("two", "--reference nowhere.npz", "nowhere.npz"),
        ("nowhere", "", "nowhere"),
        ("two", "--subfolder x --variant y", "--variant and --subfolder tell of a teacher"),
    ],
)
def test_refusals_name_what_is_wrong(home, tmp_path, source, options, told):
    line = refusal("compare", home / source, *small(home, tmp_path), *options.split())
    assert told in line and not (tmp_path / "rows.json").exists()


@pytest.mark.parametrize(
    ("source", "options", "told"),
    [
        ("two", "--nfe two", "--nfe two"),
        ("two", "--solvers edm", "no solver 'edm'"),
        ("two", "--teacher-calls -3", "--teacher-calls"),
        ("two", "--teacher-solver edm", "no solver 'edm'"),
        ("two", "--reference nowhere.npz", "nowhere.npz"),
        ("two", "--reference {}/empty", "no image in this folder"),
        ("two", "--reference {}/teacher", "holds no images"),
        ("two", "--detector nowhere", "detector nowhere: not found"),
        ("two", "--detector inception --detector-weights nowhere", "there is no such file"),
    ],
)
def test_what_was_typed_is_looked_at_before_networks_are_loaded(
    home, tmp_path, monkeypatch, source, options, told
):
    (home / "empty").mkdir(exist_ok=True)
    monkeypatch.setattr(verb, "open_sources", None)  # would fail
    options = options.format(*[home] * 2).split()
    assert told in refusal("compare", home / source, *small(home, tmp_path), *options)


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_drawn(
    home, drawings, tmp_path
):
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "x"
    for options in (
        *(("--json", below), ("--grids", below), ("--plot", tmp_path)),
        *(("--plot", tmp_path / "x", "--html", tmp_path / "x"), ("--json", home / "real.npz")),
        *(("--grids", tmp_path / "file"), ("--cache", tmp_path / "file")),
        ("--grids", tmp_path / "new", "--html", tmp_path / "new"),
    ):
        refusal("compare", home / "two", *small(home, tmp_path), *options)
    assert not drawings


def test_a_reference_of_another_detector_is_refused(home, tmp_path):
    embedded = ("--reference", weights_folder() / "reference.npz")
    told = refusal("compare", home / "two", *small(home, tmp_path), *embedded)
    assert "fashion-mnist" in told and "tiny" in told


def test_two_teachers_at_once_are_refused(home, tmp_path):
    arguments = (*small(home, tmp_path), "--nfe", 2)
    told = refusal("compare", home / "teacher", home / "stranger", *arguments)
    assert "one teacher at a time" in told


def test_a_sampler_that_draws_nan_has_a_row_that_says_so_and_the_others_go_on(home, tmp_path):
    train(home / "teacher", tmp_path / "nan", "--steps", 0)
    file = tmp_path / "nan" / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_out.bias"].fill_(3e38)  # finite, but no image of it
    save_file(weights, file, metadata={"format": "pt"})
    pages = ("--html", tmp_path / "page.html", "--plot", tmp_path / "plot.png")
    arguments = (*small(home, tmp_path), "--solvers", "ddim-linspace", *pages)
    result = hsivi("compare", tmp_path / "nan", home / "two", *arguments)

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    text = (tmp_path / "rows.json").read_text()
    broken, *sound = json.loads(text, parse_constant=refuse)["rows"]
    assert broken["distance"] is broken["seconds"] is broken["recall"] is None
    assert broken["distances"] == [] and "NaN" in broken["error"]
    assert len(sound) == 2 and all(row["distance"] > 0 and "error" not in row for row in sound)
    assert f"{tmp_path / 'nan'}, 2 calls: {broken['error']}." in result.stdout
    assert "NaN" in (tmp_path / "page.html").read_text()


def test_a_spacing_that_draws_nan_is_not_the_best(home, measure, monkeypatch):
    real = ruler.draw

    def spied(sampler, *rest):
        if sampler.name != "ddim-quad":
            raise NotFinite("3 images hold NaN")
        return real(sampler, *rest)

    monkeypatch.setattr(ruler, "draw", spied)
    rows, _ = measure(home / "teacher", "--nfe", 2, "--solvers", "ddim")
    assert [row["name"] for row in rows] == ["ddim-quad"] and rows[0]["distance"] > 0


def test_many_spacings_are_tried_by_successive_halving(home, measure, drawings):
    rows, _ = measure(
        *(home / "teacher", "--nfe", 3, "--solvers", "ddim"),
        *("--count", 60, "--tune-count", 56),  # 7 images at first, more than the 6 features
    )
    tried = [name for name, _, seeds in drawings if seeds == range(7)]
    kept = [name for name, _, seeds in drawings if seeds == range(56)]
    assert sorted(tried) == sorted(solver_names(("ddim",))) and len(kept) == tuning.KEPT
    loaded = load_teacher(str(home / "teacher"))

    def far(name, count):
        return distance_of(solver_sampler(loaded, name, 3), home, range(count))

    assert set(kept) == set(sorted(tried, key=lambda name: far(name, 7))[: tuning.KEPT])
    assert [row["name"] for row in rows] == [min(kept, key=lambda name: far(name, 56))]


def test_too_few_images_for_a_covariance_choose_spacings_by_the_kernel_distance(
    home, measure, tmp_path
):
    """Five images span no covariance of six features."""
    detector, loaded = load_detector(str(home / "detector")), load_teacher(str(home / "teacher"))
    real = detector.features(torch.from_numpy(real_images(home)))
    for nfe in (2, 3):
        arguments = ("--nfe", nfe, "--solvers", "ddim", "--tune-count", 5)
        (row,), _ = measure(home / "teacher", *arguments)
        kernel = {}
        for name in solver_names(("ddim",)):
            drawn = torch.cat(list(draw(solver_sampler(loaded, name, nfe), range(5), 5, "cpu")))
            features = detector.features(drawn).half().float()  # as the cache keeps them
            chosen = random_rows(real, 40, seed=0)  # --count of the reference's, by --seed
            rng = torch.Generator().manual_seed(0)
            kernel[name], _ = kernel_distance(features, chosen, subsets=1, rng=rng)
        assert row["name"] == min(kernel, key=kernel.get)
    told = json.loads((tmp_path / "rows.json").read_text())["about"]["solvers"]
    assert "best by the kernel distance on 5 images" in told


def test_few_images_and_a_reference_without_features_are_warned_of(home, measure, tmp_path):
    detector = load_detector(str(home / "detector"))
    moments, _ = moments_of([torch.from_numpy(real_images(home))], detector)
    save_statistics(tmp_path / "bare.npz", Statistics(moments, detector.stamp))
    arguments = ("--nfe", 3, "--reference", tmp_path / "bare.npz", "--tune-count", 5)
    _, result = measure(home / "teacher", *arguments, "--solvers", "ddim")
    assert "warning: --tune-count 5 images for 6 features" in result.stderr
    _, result = measure(home / "teacher", *arguments, "--solvers", "ddim-quad")  # nothing to tune
    assert "--tune-count" not in result.stderr


def test_a_solver_that_does_not_fit_the_calls_is_left_out_with_a_word(home, measure):
    rows, result = measure(home / "teacher", "--nfe", "2,3", "--solvers", "ddim-quad,heun")
    assert [(row["name"].split("-")[0], row["nfe"]) for row in rows] == [
        ("ddim", 2),
        ("ddim", 3),
        ("heun", 3),
    ]
    assert "warning: heun is left out at 2 calls: heun-linspace takes two calls" in result.stderr


def test_calls_that_no_student_has_are_warned_of(home, measure):
    _, result = measure(home / "two", "--nfe", "2,5", "--solvers", "ddim-quad")
    assert "warning: no student was trained for 5 calls; they were for 2" in result.stderr
    assert "there is no student" in result.stdout or "nothing to compare" in result.stdout


def test_too_few_images_for_the_detector_are_warned_of(home, measure):
    _, result = measure(home / "two", "--solvers", "none", "--count", 6)
    assert "warning: --count 6 has 6 images for 6 features" in result.stderr
    _, result = measure(home / "two", "--solvers", "none")
    assert "warning" not in result.stderr


def test_statistics_of_images_of_another_size_than_the_students_are_warned_of(
    home, measure, tmp_path
):
    detector = load_detector(str(home / "detector"))
    moments, _ = moments_of([torch.from_numpy(real_images(home))], detector)
    stats = tmp_path / "stats.npz"
    save_statistics(stats, Statistics(moments, detector.stamp, image=(16, 24, 3)))
    _, result = measure(home / "two", "--solvers", "none", "--reference", stats)
    (line,) = [line for line in result.stderr.splitlines() if "has images of" in line]
    assert line.startswith(f"warning: {stats} has images of 24 x 16 RGB, ")
    assert f"{home / 'two'} of 8 x 8 grey: " in line


def test_a_student_of_another_schedule_is_of_another_teacher(home, measure, tmp_path):
    """The same weights under other betas: neither its solvers nor its cache are the first's."""
    other = tmp_path / "other"
    shutil.copytree(home / "teacher", other)
    edit_json(other / "scheduler" / "scheduler_config.json", beta_end=0.03)
    train(other, tmp_path / "run", "--steps", 0)
    rows, result = measure(tmp_path / "run", home / "two", "--solvers", "none")
    assert "warning: students of different teachers" in result.stderr
    assert [row["own_teacher"] for row in rows] == [False, False]
    named, _ = measure(tmp_path / "run", home / "two", home / "teacher", "--solvers", "none")
    assert [row["own_teacher"] for row in named] == [False, True]
    solvers = ("--nfe", 2, "--solvers", "ddim-quad")
    (one,), (two,) = (measure(source, *solvers)[0] for source in (home / "teacher", other))
    assert one["distance"] != two["distance"]
    assert "other noise schedule" in refusal(
        "compare", home / "teacher", other, *small(home, tmp_path), *solvers
    )


def test_what_a_run_measured_in_training_is_kept_by_minutes(home, measure, tmp_path):
    judged = ("--reference", home / "real.npz", "--detector", home / "detector")
    run = tmp_path / "run"
    train(home / "teacher", run, *judged, "--eval-every", 1, "--eval-count", 20)
    plot = tmp_path / "plot.png"
    rows, _ = measure(run, "--solvers", "none", "--plot", plot)
    (curve,) = json.loads((tmp_path / "rows.json").read_text())["training"]
    timing, told = (
        [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]
        for name in ("timing", "evaluations")
    )
    assert (curve["name"], curve["nfe"], curve["counts"]) == (str(run), 2, [20])
    assert curve["points"] == [
        [round(time["seconds"] / 60, 2), line["distance"]]
        for time, line in zip(timing, told[1:], strict=True)  # the start has taken no time
    ]
    assert rows[0]["minutes"] == round(load_student(run).info["seconds"] / 60, 1)
    assert plot.read_bytes().startswith(b"\x89PNG")
    save_detector(tmp_path / "detector", seed=9)  # another ruler: its curve would not compare
    _, _ = measure(run, "--solvers", "none", "--detector", tmp_path / "detector")
    assert json.loads((tmp_path / "rows.json").read_text())["training"] == []


def test_recorded_rows_are_marked_with_their_date_and_command():
    told = json.loads((weights_folder() / "recorded.json").read_text())
    assert told["teacher"] == load_teacher().identity
    rows = recorded.recorded(load_teacher(), [1, 2, 3, 4, 5, 6, 8, 10])
    assert len(rows) == len(told["rows"])
    lines = report.table(rows).splitlines()
    assert all(line.split()[-2] == "recorded" for line in lines[1:])
    made, said = "\n".join(sentences.commands(rows)), "\n".join(sentences.summary(rows))
    page = pages.page(rows, {}, {})
    for row in rows:
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"]) and row["command"] in made
        assert row["command"] in page and row["command"] not in said


def test_recorded_rows_are_those_of_the_calls_compared_and_means_of_their_sets():
    known = json.loads((weights_folder() / "recorded.json").read_text())["rows"]
    for row in known:
        assert row["distance"] == pytest.approx(statistics.fmean(row["distances"]))
    rows = recorded.recorded(load_teacher(), [4])
    assert {r["nfe"] for r in rows if r["kind"] in ("student", "solver")} == {4}
    assert {r["nfe"] for r in rows} == {None, 4, 20, 200}


def test_without_names_the_shipped_students_are_compared_and_nothing_slow_is_drawn(
    drawings, tmp_path
):
    here = ("--device", "cpu", "--cache", tmp_path / "cache", "--json", tmp_path / "rows.json")
    known = json.loads((weights_folder() / "recorded.json").read_text())["rows"]
    result = hsivi("compare", *here)
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    shipped = {r["nfe"] for r in known if r["kind"] == "student"}
    for nfe in shipped_students():
        missing = f"embedded:students/{nfe} is not measured yet" in result.stderr
        assert missing == (int(nfe) not in shipped)
    wanted = [r for r in known if r["kind"] in ("teacher", "floor") or r["nfe"] in shipped]
    assert not drawings and {(r["name"], r["nfe"]) for r in rows} == {
        (r["name"], r["nfe"]) for r in wanted
    }
    for nfe in shipped:
        rivals = [r for r in wanted if r["nfe"] == nfe and r["kind"] in ("student", "solver")]
        won = min(rivals, key=lambda r: np.mean(r["distances"]))["name"]
        assert re.search(rf"^{nfe} calls?: {re.escape(won)} ", result.stdout, re.MULTILINE)
    small = ("--count", 70, *here)
    hsivi("compare", "embedded:students/1", "--solvers", "none", *small)
    hsivi("compare", "embedded:teacher", "--nfe", 2, "--solvers", "ipndm-leading", *small)
    drawings.clear()  # what is in the cache is measured
    hsivi("compare", "--nfe", "1,2", *small)
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    found = {(r["name"], r["nfe"]) for r in rows if r["how"] == "measured"}
    assert not drawings and found == {
        ("embedded:students/1", 1),
        ("ipndm-leading", 2),
        ("ipndm-leading clipped", 2),  # both were drawn to find the better
    }
    told = refusal("compare", "--nfe", 7, *here)
    assert f"no student of 7 calls is shipped, but of {', '.join(shipped_students())}:" in told


@pytest.fixture
def half_covered(home, tmp_path):
    """A reference sorted by class: first 40 images that the student never draws, then 40 of its
    own, of other seeds.
    """
    sampler = student_sampler(load_student(home / "two"))
    own = torch.cat(list(draw(sampler, range(500, 540), 20, "cpu")))
    strange = torch.zeros_like(own)
    strange[:, ::2] = torch.arange(40).view(-1, 1, 1, 1).to(torch.uint8) + 215  # bright stripes
    save_npz(torch.cat([strange, own]), tmp_path / "half.npz")
    return ("--reference", tmp_path / "half.npz")


def test_recall_is_of_a_random_part_of_a_sorted_reference(home, measure, half_covered, monkeypatch):
    monkeypatch.setattr(ruler, "RECALL_COUNT", 40)
    arguments = ("--solvers", "none", "--count", 60, *half_covered)
    (row,), _ = measure(home / "two", *arguments)
    # of its first 40 images the student draws none
    assert row["precision"] > 0.5 and 0.2 < row["recall"] < 0.7
    (again,), _ = measure(home / "two", *arguments)
    assert again == row  # the same part, whether drawn or read


def test_precision_is_of_what_is_drawn_and_recall_of_the_reference(home, measure, half_covered):
    """All that the student draws is like images of the reference, half of which it never draws."""
    (row,), _ = measure(home / "two", "--solvers", "none", "--count", 80, *half_covered)
    assert row["precision"] > 0.75 and 0.3 < row["recall"] < 0.6


def test_very_few_images_have_a_distance_and_no_recall(home, measure):
    (row,), _ = measure(home / "two", "--solvers", "none", "--count", 3)
    assert row["count"] == 3 and row["precision"] is row["recall"] is None


# ---- sentences from made-up rows -----------------------------------------------------------------


def row(kind, name, nfe, distance, **more):
    known = {"count": 5000, "seconds": 10.0, "how": "measured", "distances": [distance]}
    return {"kind": kind, "name": name, "nfe": nfe, "distance": distance} | known | more


ROWS = [
    row("solver", "ddim-quad", 4, 90.0),
    row("solver", "deis-linspace", 4, 60.0),
    row("student", "runs/x", 4, 15.0),
    row("teacher", "dpm++2-linspace", 200, 10.0),
]


def test_the_excess_left_is_measured_from_the_teacher_to_the_best_solver():
    (told,) = sentences.verdicts(ROWS)
    assert told == (
        "4 calls: runs/x (student) wins, 15.00 against 60.00 of deis-linspace; "
        "excess left 0.100 over the teacher's 10.00 at 200 calls."
    )


def test_a_student_better_than_its_teacher_has_a_negative_excess():
    (told,) = sentences.verdicts([*ROWS[:2], row("student", "runs/x", 4, 5.0), ROWS[3]])
    assert "excess left -0.100" in told


def test_a_loss_of_the_student_is_said():
    (told,) = sentences.verdicts([*ROWS[:2], row("student", "runs/x", 4, 75.0)])
    assert told == "4 calls: deis-linspace (solver) wins, 60.00 against 75.00 of runs/x."


def test_no_excess_is_told_where_a_solver_reaches_the_teacher():
    (told,) = sentences.verdicts([row("solver", "deis", 4, 9.0), *ROWS[2:]])
    assert "deis (solver) wins" in told and "excess left" not in told
    assert told.endswith(
        "no excess is told, as deis itself is not above the teacher's 10.00 at 200 calls."
    )


def test_calls_that_only_one_side_has_are_said_so():
    told = sentences.verdicts([*ROWS, row("student", "runs/y", 2, 30.0)])
    assert told[0] == "2 calls: runs/y 30.00, with nothing to compare it with."
    assert told[1].startswith("4 calls: runs/x (student) wins")
    (told,) = sentences.verdicts([row("student", "a", 1, 3.0), row("student", "b", 1, 2.0)])
    assert told == "1 call: b is the best student, 2.00 against 3.00 of a; there is no solver to " \
        "compare it with."  # fmt: skip
    (told,) = sentences.verdicts(ROWS[:2])
    assert told.endswith(
        "60.00 against 90.00 of ddim-quad; there is no student to compare it with."
    )


def test_numbers_of_calls_that_end_in_one_are_many():
    (told,) = sentences.verdicts([row("student", "a", 11, 2.0)])
    assert told.startswith("11 calls: a 2.00")


def test_recall_stands_beside_the_distance():
    (told,) = sentences.verdicts([row("student", "a", 4, 2.0, recall=0.61), ROWS[0]])
    assert told == "4 calls: a (student) wins, 2.00 (recall 0.61) against 90.00 of ddim-quad."


def test_a_difference_within_its_noise_is_no_win():
    near = row("solver", "b", 4, 2.2, standard_error=0.06)
    (told,) = sentences.verdicts([row("student", "a", 4, 2.0, standard_error=0.09), near])
    assert told == (
        "4 calls: a (student) and b (solver) are not told apart, 2.00 against 2.20: differences "
        "up to 0.22 are noise."  # 2 sqrt(.06^2 + .09^2)
    )
    (told,) = sentences.verdicts([row("student", "a", 4, 1.97, standard_error=0.09), near])
    assert told == "4 calls: a (student) wins, 1.97 against 2.20 of b."
    (told,) = sentences.verdicts([row("student", "a", 4, 1.97, standard_error=0.12), near])
    assert "not told apart" in told


def test_two_students_or_two_solvers_may_not_be_told_apart_either():
    rows = [row("student", name, 1, d, standard_error=0.1) for name, d in (("a", 3.0), ("b", 2.9))]
    (told,) = sentences.verdicts(rows)
    assert told == (
        "1 call: b (student) and a (student) are not told apart, 2.90 against 3.00: differences "
        "up to 0.28 are noise; there is no solver to compare them with."
    )


def test_the_noise_of_rows_that_tell_none_is_read_off_their_repeats_or_the_other_row():
    told = row("student", "a", 4, 2.0, distances=[1.9, 2.0, 2.1])  # sd .1 over sqrt(3)
    assert report.noise(told, row("solver", "b", 4, 3.0)) == pytest.approx(2 * 0.1 * (2 / 3) ** 0.5)
    assert report.noise(row("solver", "b", 4, 3.0), row("student", "c", 4, 3.0)) is None
    lone = [row("student", "a", 4, 2.001), row("solver", "b", 4, 2.1)]
    (sentence,) = sentences.verdicts(lone)
    assert sentence == "4 calls: a (student) wins, 2.00 against 2.10 of b."
    assert any(
        "no ± are of one set of images, whose noise is not" in n for n in sentences.notes(lone)
    )
    (sentence,) = sentences.verdicts([lone[0], row("solver", "b", 4, 2.004)])
    assert sentence == "4 calls: a (student) and b (solver) are not told apart, 2.00 against 2.00."


def test_the_last_word_is_on_the_student_just_measured():
    old = {"how": "recorded", "date": "2026-01-01", "command": "hsivi compare one --nfe 4"}
    shipped = row("student", "shipped", 4, 2.0, **old)
    others = [row("solver", "b", 2, 30.0, **old), row("student", "other", 2, 20.0, **old)]
    rows = [
        *(*ROWS[:2], row("student", "runs/x", 4, 15.0, recall=0.7)),
        *(row("teacher", "t", 200, 10.0, **old), shipped, *others),
    ]
    said = sentences.summary(rows)
    assert said[-1] == (
        "runs/x at 4 calls: 15.00 (recall 0.70), nearer to the data than deis-linspace, the best "
        "solver, at 60.00, and farther from the data than its teacher's 200 calls at 10.00; excess "
        "left 0.100 over the teacher's 10.00 at 200 calls."
    )
    assert said[0].startswith("4 calls: shipped (student) wins, 2.00 against 60.00")
    assert "2 calls" not in "".join(said) and "hsivi compare one" not in "".join(said)
    assert sum("Excess left: " in line for line in said) == 1
    alone = sentences.summary([r for r in rows if r is not shipped])
    assert not [line for line in alone if line.startswith("4 calls")]  # the last word says it


def test_only_students_of_the_teacher_at_hand_have_an_excess():
    stranger = row("student", "far", 4, 12.0, own_teacher=False)
    (told,) = sentences.verdicts([*ROWS, stranger])
    assert "far (student) wins, 12.00" in told and "excess left 0.100 over" in told
    (told,) = sentences.verdicts([*ROWS[:2], stranger, ROWS[3]])
    assert "excess" not in told


def test_rows_of_another_number_of_images_are_not_weighed():
    old = row("solver", "dpm++3", 4, 1.0, count=50_000, how="recorded", date="2026-01-01")
    (told,) = sentences.verdicts([*ROWS, old])
    assert "runs/x (student) wins, 15.00 against 60.00" in told
    assert any("1 rows are of another number" in line for line in sentences.notes([*ROWS, old]))
    teacher = row("teacher", "dpm++2", 200, 10.0, count=1000)
    rows = [*ROWS[:3], teacher]
    (told,) = sentences.verdicts(rows)
    assert "excess" not in told and any("--teacher-calls" in line for line in sentences.notes(rows))


def test_a_row_without_a_distance_comes_last_and_wins_nothing():
    broken = row("solver", "b", 4, None, distances=[], error="9 of 9 images hold NaN")
    rows = [row("student", "a", 4, 2.0), broken]
    assert sentences.verdicts(rows) == ["4 calls: a 2.00, with nothing to compare it with."]
    assert sentences.verdicts([broken]) == ["4 calls: nothing to compare was drawn."]
    assert "NaN" in report.table(rows).splitlines()[-1].split()
    assert plots.plot_png(rows).startswith(b"\x89PNG")
    assert plots.plot_png([broken]).startswith(b"\x89PNG")


def test_the_table_marks_recorded_rows_and_the_floor():
    floor = row("floor", "train against test", None, 1.5, how="recorded", seconds=None)
    lines = report.table([*ROWS, floor]).splitlines()
    assert lines[1].startswith("train against test") and lines[1].endswith("recorded")
    assert [line.split()[0] for line in lines[2:]] == [
        "dpm++2-linspace",
        "runs/x",
        "deis-linspace",
        "ddim-quad",
    ]
    assert "500" in lines[3].split()  # 5,000 images in 10 seconds
    elsewhere = row("solver", "deis", 4, 3.0, how="recorded", seconds=7.0)
    assert "714" not in report.table([*ROWS, elsewhere])  # another machine's seconds
    assert plots.plot_png([*ROWS, floor]).startswith(b"\x89PNG")
    assert "train against test" in pages.page([*ROWS, floor], {}, {})


def test_names_are_escaped_in_the_page():
    page = pages.page([row("student", "<script>", 4, 1.0)], {}, {"command": "a & b"})
    assert "<script>" not in page and "&lt;script&gt;" in page and "a &amp; b" in page
