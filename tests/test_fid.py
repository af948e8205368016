"""The verb from argument to printed number: every kind of input, every refusal."""

import json

import numpy as np
import pytest
import torch
from command import TINY, hsivi, refusal, save_detector, train, tree

from hsivi_cli.config import FidConfig
from hsivi_cli.errors import HsiviError
from hsivi_cli.files.images import save_grid, save_npz
from hsivi_cli.files.places import weights_folder
from hsivi_cli.files.pngs import save_png
from hsivi_cli.metrics.detectors import Detector, load_detector
from hsivi_cli.metrics.frechet import precision_recall
from hsivi_cli.metrics.statistics import load_statistics, moments_of
from hsivi_cli.models.draw import draw, student_sampler
from hsivi_cli.models.student import load_student
from hsivi_cli.verbs import fid

REFERENCE = str(weights_folder() / "reference.npz")


def blobs(count, seed, brightness=255):
    """Images of 28 x 28 that differ in place and size."""
    rng = torch.Generator().manual_seed(seed)
    centre = 8 + 12 * torch.rand(2, count, 1, generator=rng)
    width = 2 + 4 * torch.rand(count, 1, 1, generator=rng)
    y, x = (torch.arange(28) - c for c in centre)
    bumps = torch.exp(-(y[:, :, None] ** 2 + x[:, None, :] ** 2) / width**2)
    return (brightness * bumps).round().to(torch.uint8).unsqueeze(-1)


FIRST, SECOND = blobs(100, 0), blobs(100, 1, brightness=60)


@pytest.fixture
def sets(tmp_path):
    """Two sets of 100 images, as .npz files and the first as a folder too."""
    save_npz(FIRST, tmp_path / "a.npz")
    save_npz(SECOND, tmp_path / "b.npz")
    save_png(FIRST, range(100), tmp_path / "a")
    return tmp_path


def report_of(capsys, *sources, **settings):
    settings = {"detector": "fashion-mnist", "json": True, "device": "cpu"} | settings
    fid.run(FidConfig(*(str(source) for source in sources), **settings))
    return json.loads(capsys.readouterr().out)


def numpy_distance(a, b):
    """The formula by an eigen-decomposition of the unsymmetric product, apart from our code."""
    rows = [load_detector("fashion-mnist").features(images).double().numpy() for images in (a, b)]
    means, covs = [r.mean(0) for r in rows], [np.cov(r, rowvar=False) for r in rows]
    roots = np.sqrt(np.linalg.eigvals(covs[0] @ covs[1]).astype(complex)).real.sum()
    return ((means[0] - means[1]) ** 2).sum() + np.trace(covs[0] + covs[1]) - 2 * roots


def test_the_distance_is_the_formulas(sets, capsys):
    report = report_of(capsys, sets / "a.npz", sets / "b.npz")
    expected = numpy_distance(FIRST, SECOND)
    # the spectrum of an unsymmetric product is good to about sqrt(1e-16) where it is nearly 0
    assert report["fid"] == pytest.approx(expected, rel=1e-4) and report["fid"] > 0.1


def test_folder_and_npz_and_statistics_of_the_same_images_are_at_no_distance(sets, capsys):
    report_free = FidConfig(
        str(sets / "a"), save_stats=str(sets / "s.npz"), detector="fashion-mnist"
    )
    fid.run(report_free)
    capsys.readouterr()
    for other in ("a.npz", "s.npz"):
        assert report_of(capsys, sets / "a", sets / other)["fid"] == pytest.approx(0, abs=1e-9)


def test_the_report_tells_what_was_measured(sets, capsys):
    report = report_of(capsys, sets / "a.npz", REFERENCE)
    assert report.keys() >= {"fid", "count", "detector", "reference", "kid"}
    assert report["name"] == "frechet0.1k" and report["kid"] is None
    assert report["count"] == 100 and report["reference_count"] == 60_000
    assert report["reference"] == REFERENCE
    assert report["detector"] == load_detector("fashion-mnist").stamp


def test_the_printed_line_starts_with_name_and_number(sets, capsys):
    fid.run(FidConfig(str(sets / "a.npz"), REFERENCE))  # the reference chooses the detector
    lines = capsys.readouterr().out.splitlines()
    name, number = lines[0].split()
    assert name == "frechet0.1k" and float(number) > 0
    assert lines[1] == "images 100 against 60000"
    assert lines[2].startswith("detector fashion-mnist 28x28")


@pytest.mark.parametrize(
    ("count", "stamp", "width", "name"),
    [
        (50_000, "inception-pool3 bilinear-299 sha256:0", 2048, "fid"),
        (60_000, "inception-pool3 bilinear-299 sha256:0", 2048, "fid"),
        (49_999, "inception-pool3 bilinear-299 sha256:0", 2048, "fid49.999k"),
        (500, "inception-pool3 bilinear-299 sha256:0", 2048, "fid0.5k"),
        (None, None, 2048, "fid"),  # a plain file: pytorch-fid writes no others
        (5000, "fashion-mnist 28x28 no-resize sha256:0", 64, "frechet5k"),
        (50_000, "other 32x32 sha256:0", 2048, "frechet"),
        (5000, None, 64, "frechet5k"),
    ],
)
def test_a_distance_is_called_fid_of_inception_alone_and_says_its_images(count, stamp, width, name):
    assert fid.distance_name(count, stamp, width) == name


def test_kid_precision_and_recall_come_on_request(sets, capsys):
    near = report_of(capsys, sets / "a", sets / "a.npz", kid=True)
    far = report_of(capsys, sets / "a", sets / "b.npz", kid=True)
    assert near["kid"] < 0 < far["kid"]  # unbiased: equal sets lie below their expectation, 0
    assert far["kid_sd"] is None  # 100 images are one subset
    assert near["precision"] == near["recall"] == 1.0
    a, b = (load_detector("fashion-mnist").features(images) for images in (FIRST, SECOND))
    assert (far["precision"], far["recall"]) == precision_recall(real=b, fake=a)
    assert far["precision"] != far["recall"]
    assert far == report_of(capsys, sets / "a", sets / "b.npz", kid=True)  # the seed decides


def test_features_never_leave_their_device_one_batch_at_a_time(sets, monkeypatch):
    """Only their moments come to the CPU."""
    detector, moved, real = load_detector("fashion-mnist"), [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: moved.append(self.shape) or real(self))
    moments_of(FIRST.split(30), detector, keep_features=True)
    assert moved == [(64,), (64, 64)]


@pytest.mark.gpu
def test_kid_precision_and_recall_run_on_the_gpu_and_agree(sets, capsys, monkeypatch):
    seen, real = [], fid.kernel_distance

    def spied(x, *rest, **more):
        seen.append(x.device.type)
        return real(x, *rest, **more)

    monkeypatch.setattr(fid, "kernel_distance", spied)
    stats = str(sets / "s.npz")
    fid.run(FidConfig(str(sets / "b.npz"), save_stats=stats, detector="fashion-mnist"))
    capsys.readouterr()
    for other in ("b.npz", "s.npz"):  # images, and features from a file
        there = report_of(capsys, sets / "a", sets / other, kid=True, device="cuda")
        here = report_of(capsys, sets / "a", sets / other, kid=True)
        for key in ("fid", "kid", "precision", "recall"):
            assert there[key] == pytest.approx(here[key], rel=1e-3)
    assert seen == ["cuda", "cpu"] * 2


def test_kid_runs_against_a_saved_statistics_file(sets, capsys):
    fid.run(
        FidConfig(
            str(sets / "b.npz"), save_stats=str(sets / "b_stats.npz"), detector="fashion-mnist"
        )
    )
    capsys.readouterr()
    direct = report_of(capsys, sets / "a", sets / "b.npz", kid=True)
    saved = report_of(capsys, sets / "a", sets / "b_stats.npz", kid=True)
    assert saved["fid"] == pytest.approx(direct["fid"], rel=1e-9)
    assert saved["kid"] == pytest.approx(direct["kid"], rel=1e-2)  # features in float16


def test_kid_without_features_says_what_to_give(sets, capsys):
    statistics = load_statistics(REFERENCE).moments
    np.savez(sets / "plain.npz", mu=statistics.mean, sigma=statistics.cov)
    with pytest.raises(HsiviError, match=r"--kid: .*plain\.npz keeps no features; give its images"):
        report_of(capsys, sets / "a", sets / "plain.npz", kid=True)


def test_saved_statistics_keep_at_most_their_share_of_features(sets, capsys, monkeypatch):
    monkeypatch.setattr(fid, "KEPT_FEATURES", 40)
    report_of(capsys, sets / "a", sets / "b.npz", save_stats=str(sets / "s.npz"))
    statistics = load_statistics(sets / "s.npz")
    assert statistics.moments.count == 100 and len(statistics.features) == 40
    # A's, and the kept ones are rows of A
    rows = load_detector("fashion-mnist").features(FIRST)
    nearest = torch.cdist(statistics.features, rows).min(1).values
    assert nearest.max() < 0.02  # float16 of numbers up to 10


def test_plain_statistics_files_are_accepted_with_a_warning(sets, capsys):
    statistics = load_statistics(REFERENCE).moments
    np.savez(sets / "plain.npz", mu=statistics.mean, sigma=statistics.cov)
    plain = FidConfig(str(sets / "a"), str(sets / "plain.npz"), detector="fashion-mnist", json=True)
    fid.run(plain)
    streams = capsys.readouterr()
    assert "plain.npz does not tell its detector" in streams.err and "singular" not in streams.err
    report = json.loads(streams.out)
    assert report["fid"] == pytest.approx(report_of(capsys, sets / "a", REFERENCE)["fid"])
    assert report["reference_count"] is None and report["name"] == "frechet0.1k"


def test_too_few_images_are_computed_with_a_loud_warning(tmp_path, capsys):
    save_npz(blobs(64, 0), tmp_path / "few.npz")
    save_npz(blobs(65, 0), tmp_path / "enough.npz")
    fid.run(FidConfig(str(tmp_path / "few.npz"), REFERENCE))
    streams = capsys.readouterr()
    assert "warning: " in streams.err and "64 images for 64 features" in streams.err
    assert streams.out.startswith("frechet0.064k ")
    fid.run(FidConfig(str(tmp_path / "enough.npz"), REFERENCE))
    assert "warning" not in capsys.readouterr().err


def test_images_of_other_sizes_or_modes_are_told_with_both(tmp_path, capsys, monkeypatch):
    save_npz(torch.zeros(3, 28, 28, 1, dtype=torch.uint8), tmp_path / "grey.npz")
    save_npz(torch.zeros(4, 32, 32, 3, dtype=torch.uint8), tmp_path / "colour.npz")
    # as inception does: any size and mode
    alike = Detector("any", 2, lambda images: images.float().flatten(1)[:, :2])
    monkeypatch.setattr(fid, "open_detector", lambda *rest: alike)
    names = [str(tmp_path / name) for name in ("grey.npz", "colour.npz")]
    fid.run(FidConfig(*names))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if " RGB" in line]
    assert line.startswith(
        f"warning: {names[1]} has images of 32 x 32 RGB, {names[0]} of 28 x 28 g"
    )
    fid.run(FidConfig(names[0], names[0]))
    assert "has images of" not in capsys.readouterr().err


def test_a_statistics_file_tells_what_images_it_is_of(tmp_path, capsys, monkeypatch):
    save_npz(torch.zeros(3, 28, 28, 1, dtype=torch.uint8), tmp_path / "grey.npz")
    save_npz(torch.zeros(4, 32, 24, 3, dtype=torch.uint8), tmp_path / "colour.npz")
    alike = Detector("any", 2, lambda images: images.float().flatten(1)[:, :2])
    monkeypatch.setattr(fid, "open_detector", lambda *rest: alike)
    grey, stats = str(tmp_path / "grey.npz"), str(tmp_path / "stats.npz")
    fid.run(FidConfig(str(tmp_path / "colour.npz"), save_stats=stats))
    with np.load(stats) as file:
        assert file["image"].tolist() == [32, 24, 3]
    fid.run(FidConfig(grey, stats))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "has images" in line]
    assert line.startswith(f"warning: {stats} has images of 24 x 32 RGB, {grey} of 28 x 28 grey")


def test_a_statistics_file_without_its_images_size_is_believed(tmp_path, sets, capsys):
    hsivi("fid", sets / "a", "--save-stats", tmp_path / "stats.npz", "--detector", "fashion-mnist")
    with np.load(tmp_path / "stats.npz") as file:
        earlier = {key: file[key] for key in file.files if key != "image"}
    np.savez(tmp_path / "earlier.npz", **earlier)
    assert load_statistics(tmp_path / "stats.npz").image == (28, 28, 1)
    assert load_statistics(tmp_path / "earlier.npz").image is None
    hsivi("fid", sets / "b.npz", tmp_path / "earlier.npz")
    for wrong in ([28, 28], [28, 0, 1], [28.0, 28.0, 1.0], "28"):
        np.savez(tmp_path / "wrong.npz", **earlier, image=wrong)
        with pytest.raises(HsiviError, match="image must be a height, a width and a number of"):
            load_statistics(tmp_path / "wrong.npz")


def test_a_folder_here_goes_before_a_data_set_of_its_name(sets, capsys, monkeypatch):
    monkeypatch.chdir(sets)
    save_png(FIRST, range(100), sets / "cifar10-test")
    assert report_of(capsys, "cifar10-test", sets / "a.npz")["fid"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("mark", ["config.json", "unet"])
def test_images_beside_what_a_network_has_are_told_as_both(sets, capsys, mark):
    (sets / "a" / mark).mkdir() if mark == "unet" else (sets / "a" / mark).write_text("{}")
    told = refusal("fid", sets / "a", sets / "b.npz", "--detector", "fashion-mnist")
    assert f"a holds images and, as a network's folder does, {mark}" in told and "move" in told
    facts = json.loads(hsivi("info", sets / "a", "--json").stdout)
    assert facts["count"] == 100 and facts["and of a network"] == mark


def test_two_statistics_files_need_no_detector(sets, capsys, monkeypatch):
    for name in ("a.npz", "b.npz"):
        target = str(sets / f"stats_{name}")
        fid.run(FidConfig(str(sets / name), save_stats=target, detector="fashion-mnist"))
    direct = report_of(capsys, sets / "a.npz", sets / "b.npz")
    monkeypatch.setattr(fid, "open_detector", None)  # would fail
    saved = report_of(capsys, sets / "stats_a.npz", sets / "stats_b.npz", detector=None)
    assert saved["fid"] == direct["fid"] and saved["detector"] == direct["detector"]


def test_a_statistics_file_is_at_no_distance_from_itself(tmp_path):
    np.savez(tmp_path / "s.npz", mu=np.zeros(3), sigma=np.eye(3))
    told = hsivi("fid", tmp_path / "s.npz", tmp_path / "s.npz").stdout
    assert told.startswith("frechet 0.0000")


def test_statistics_of_two_detectors_are_refused_with_both_names(sets, capsys):
    moments = load_statistics(REFERENCE).moments
    np.savez(sets / "other.npz", mu=moments.mean, sigma=moments.cov, count=9, stamp="other net")
    for first in (REFERENCE, sets / "a.npz"):
        detector = None if first == REFERENCE else "fashion-mnist"
        with pytest.raises(HsiviError, match=r"fashion-mnist 28x28.*") as caught:
            report_of(capsys, first, sets / "other.npz", detector=detector)
        assert "'other net'" in str(caught.value) and "one detector" in str(caught.value)


def test_statistics_of_other_widths_are_refused(sets, capsys):
    np.savez(sets / "narrow.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(HsiviError, match=r"64 features, .*narrow\.npz has 3"):
        report_of(capsys, REFERENCE, sets / "narrow.npz", detector=None)


def test_one_set_alone_is_refused_unless_its_statistics_are_wanted(sets):
    with pytest.raises(HsiviError, match="nothing to compare with"):
        fid.run(FidConfig(str(sets / "a")))


def test_images_of_a_run_are_those_of_its_seeds(save_teacher, tmp_path, capsys):
    train(save_teacher(), tmp_path / "run", "--steps", 0)
    save_detector(tmp_path / "detector")
    drawn = draw(student_sampler(load_student(tmp_path / "run")), range(7, 47), 30, "cpu")
    save_npz(torch.cat(list(drawn)), tmp_path / "drawn.npz")
    chosen = {"detector": str(tmp_path / "detector"), "count": 40, "batch_size": 30}
    run, images = tmp_path / "run", tmp_path / "drawn.npz"
    report = report_of(capsys, run, images, seed=7, **chosen)
    assert report["fid"] == pytest.approx(0, abs=1e-9) and report["count"] == 40
    assert report_of(capsys, run, images, seed=8, **chosen)["fid"] > 1e-6


def test_sources_that_do_not_exist_are_named(sets, capsys):
    with pytest.raises(
        HsiviError, match=r"cifar11-train: neither a file, nor a folder, nor one of"
    ):
        report_of(capsys, sets / "a", "cifar11-train")


def test_sources_are_looked_at_before_a_detector_is_fetched(
    sets, save_teacher, tmp_path, monkeypatch
):
    train(save_teacher(**TINY), tmp_path / "run", "--steps", 0)
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    monkeypatch.setattr(fid, "open_detector", None)  # would fail
    for source, told in (
        (("empty",), "no image in this folder"),
        (("other.npz",), "'images' or 'arr_0' is wanted, found x"),
        (("teacher",), "there is no student at"),
        (("run", "--nfe", 7), "was trained for 2 calls, not 7"),
    ):
        where = tmp_path / source[0]
        assert told in refusal("fid", where, sets / "a", *source[1:])
        assert told in refusal("fid", sets / "a", where, *source[1:])


def test_a_single_picture_is_told_for_what_it_is(sets):
    save_grid(FIRST[:9], sets / "grid.png")
    for pair in ((sets / "grid.png", sets / "a"), (sets / "a", sets / "grid.png")):
        told = refusal("fid", *pair)
        assert "grid.png is one picture, and a distance is between sets of images" in told
        assert "folder" in told and ".npz" in told
    (sets / "words.txt").write_text("no images")
    assert "words.txt: not a readable .npz file" in refusal("fid", sets / "words.txt", sets / "a")


def test_statistics_take_the_place_of_statistics_alone(sets):
    for other in (sets / "b.npz", sets / "a"):
        before = tree(sets)
        told = refusal("fid", sets / "a", "--save-stats", other)
        assert ("holds something else" in told or "is a folder" in told) and tree(sets) == before
    told = refusal("fid", sets / "b.npz", "--save-stats", sets / "b.npz")
    assert "named twice" in told


def test_without_names_the_shipped_student_is_held_against_the_embedded_reference():
    bare = hsivi("fid", "--count", 80, "--device", "cpu")
    named = hsivi(
        *("fid", "embedded:students/4", "embedded:reference.npz"),
        *("--count", 80, "--device", "cpu"),
    )
    assert bare.stdout == named.stdout and bare.stdout.startswith("frechet0.08k ")
    assert "embedded:students/4 against embedded:reference.npz" in bare.stderr


def test_numbers_that_mean_nothing_are_refused(sets):
    for flag in ("--count", "--batch-size"):
        assert f"{flag} 0 must be at least" in refusal("fid", sets / "a", sets / "b.npz", flag, 0)
    assert "--seed -1 must be at least 0" in refusal(
        "fid", sets / "a", sets / "b.npz", "--seed", -1
    )
