"""Where a detector comes from, and which references it may be held against."""

import pytest
import torch
from command import save_detector
from test_detectors import random_images, random_statistics

from hsivi_cli.config import CompareConfig, TrainConfig
from hsivi_cli.errors import HsiviError
from hsivi_cli.files.images import save_npz
from hsivi_cli.metrics import judge, statistics
from hsivi_cli.metrics.detectors import Detector, load_detector
from hsivi_cli.metrics.judge import make_judge, open_detector, open_judge, read_files
from hsivi_cli.metrics.own import OwnImages
from hsivi_cli.metrics.statistics import check_stamps, save_statistics, statistics_of
from hsivi_cli.models.loading import load_teacher

CPU = torch.device("cpu")


def config(**settings):
    return CompareConfig((), **settings)


def test_a_statistics_file_chooses_its_own_detector(tmp_path):
    stamp = load_detector("fashion-mnist").stamp
    images, own, other = (str(tmp_path / f"{name}.npz") for name in ("images", "own", "other"))
    save_npz(random_images(2), images)
    save_statistics(own, random_statistics(stamp=stamp, width=64))
    files = read_files(images, own)
    assert list(files) == [own] and open_detector(config(), files, CPU).stamp == stamp
    save_statistics(other, random_statistics(stamp="tiny 8x8 sha256:0"))
    with pytest.raises(HsiviError, match=r"made by the detector 'tiny 8x8.*name its folder"):
        open_judge(config(), other, CPU)


def test_statistics_of_another_detector_are_refused_with_both_names(tmp_path):
    save_detector(tmp_path / "d")
    chosen = config(detector=str(tmp_path / "d"))
    save_statistics(tmp_path / "s.npz", random_statistics(stamp="other net", width=6))
    with pytest.raises(HsiviError, match=r"s\.npz is of the detector 'other net', .* of 'tiny 8x8"):
        open_judge(chosen, str(tmp_path / "s.npz"), CPU)
    save_statistics(tmp_path / "wide.npz", random_statistics(stamp=None, width=7))
    with pytest.raises(HsiviError, match=r"wide\.npz: 7 features, but .* has 6"):
        open_judge(chosen, str(tmp_path / "wide.npz"), CPU)
    check_stamps(("a", None), ("b", "any"))  # what does not tell is believed


def test_images_of_a_reference_are_seen_by_the_detector_named(tmp_path):
    save_detector(tmp_path / "d")
    save_npz(random_images(9), tmp_path / "images.npz")
    chosen = config(detector=str(tmp_path / "d"))
    opened = open_judge(chosen, str(tmp_path / "images.npz"), CPU, keep_features=True)
    seen = opened.detector.features(random_images(9))
    assert torch.equal(opened.reference.features, seen) and opened.reference.moments.count == 9
    assert open_judge(chosen, str(tmp_path / "images.npz"), CPU).reference.features is None


def test_a_statistics_file_is_read_once(tmp_path, monkeypatch):
    read, real = [], statistics.load_statistics
    monkeypatch.setattr(judge, "load_statistics", lambda path: read.append(path) or real(path))
    opened = open_judge(config(), "embedded:reference.npz", CPU)
    assert len(read) == 1 and opened.reference.stamp == opened.detector.stamp


def test_a_run_is_no_set_of_images(tmp_path):
    save_detector(tmp_path / "d")  # a network's directory, as a run is
    with pytest.raises(HsiviError, match="is a run or pipeline and holds no images: give a folder"):
        statistics_of(tmp_path / "d", load_detector(str(tmp_path / "d")))


def test_a_training_warns_of_few_images_and_of_others_than_the_students(
    save_teacher, tmp_path, monkeypatch, capfd
):
    own = OwnImages(load_teacher(str(save_teacher())))
    save_npz(random_images(4, 9, 3), tmp_path / "few.npz")
    save_npz(random_images(8), tmp_path / "enough.npz")
    alike = Detector("any", 5, lambda images: images.float().flatten(1)[:, :5])
    monkeypatch.setattr(judge, "open_detector", lambda *rest: alike)
    few, enough = str(tmp_path / "few.npz"), str(tmp_path / "enough.npz")
    make_judge(TrainConfig(reference=few, eval_count=5), own, tmp_path)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("warning: ") for line in lines)
    assert f"{few} has 4 images for 5 features" in lines[0]
    assert "--eval-count 5 has 5 images for 5 features" in lines[1]
    assert f"{few} has images of 9 x 9 RGB, the student of 8 x 8 grey" in lines[2]
    make_judge(TrainConfig(reference=enough, eval_count=6), own, tmp_path)
    assert capfd.readouterr().err == ""
    stats = str(tmp_path / "stats.npz")
    save_statistics(tmp_path / "stats.npz", statistics_of(few, alike))
    make_judge(TrainConfig(reference=stats, eval_count=6), own, tmp_path)
    assert f"{stats} has images of 9 x 9 RGB, the student of 8 x 8 grey" in capfd.readouterr().err
