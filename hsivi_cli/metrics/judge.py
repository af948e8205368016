"""A judge, a detector with a reference: what images are judged by in training and by `compare`;
`fid` has the two sides that it compares share a detector in the same way.

A training without data is judged by its teacher: by features that it has of images, as a rule, and
from images of its own.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from ..config import OWN, CompareConfig, FidConfig, TrainConfig
from ..errors import HsiviError
from ..files.places import embedded
from ..files.progress import say
from ..models.teacher import Teacher
from . import detectors
from .detectors import Detector, load_detector
from .own import OWN_CALLS, OWN_SOLVER, OwnImages, own_detector
from .statistics import (
    Statistics,
    check_detector,
    check_images,
    few_images,
    kind_of,
    load_statistics,
    name_of_detector,
    statistics_of,
    statistics_of_batches,
    unlike_images,
    unsure_of,
)

OWN_FILE = "teacher.npz"  # in a run's folder: statistics of its teacher's own images


class Judge(NamedTuple):
    """detector   a frozen network that turns images into features
    reference  statistics of the images that others are measured from
    """

    detector: Detector
    reference: Statistics


def check_named(config: TrainConfig | CompareConfig, reference: str | None) -> None:
    """Refuse what a configuration names to judge by and what is not there, before the work; None is
    a reference that is not named yet.
    """
    weights = Path(config.detector_weights) if config.detector_weights else None
    detectors.check_named(config.detector, weights)
    if reference not in (None, OWN, "none") and not read_files(reference):
        check_images(reference)


def open_judge(
    config: TrainConfig | CompareConfig,
    reference: str,
    device: torch.device,
    keep_features: bool = False,
) -> Judge:
    """The judge of a configuration; images of the reference are seen now.

    keep_features  of a reference's images, for precision and recall
    """
    files = read_files(reference)
    detector = open_detector(config, files, device)
    if reference in files:
        return Judge(detector, files[reference])
    seen = statistics_of(reference, detector, config.data_root, keep_features=keep_features)
    return Judge(detector, seen)


def make_judge(config: TrainConfig, own: OwnImages, out: Path) -> Judge | None:
    """The judge of a training in the folder `out`, None with --reference none. Refuses a detector
    that does not take the teacher's images, and warns of what makes a distance doubtful.
    """
    teacher = own.teacher
    if config.reference == "none":
        return None
    if config.reference != OWN:
        judge = open_judge(config, config.reference, teacher.unet.device, keep_features=True)
        warn_of(config, judge, teacher)
        return judge
    if config.detector or config.detector_weights:
        detector = open_detector(config, {}, teacher.unet.device)
    else:
        detector = own_detector(teacher)
    return Judge(detector, own_statistics(own, detector, config.eval_count, out / OWN_FILE))


def warn_of(config: TrainConfig, judge: Judge, teacher: Teacher) -> None:
    """Say what makes a training's distances doubtful."""
    detector, reference = judge
    detector.features(torch.zeros(2, *teacher.image, dtype=torch.uint8))
    warnings, count = unsure_of(config.reference, reference), config.eval_count
    warnings.append(few_images(f"--eval-count {count}", count, detector.feature_dim))
    warnings.append(unlike_images(config.reference, reference.image, "the student", teacher.image))
    for line in filter(None, warnings):
        say(line)


def own_statistics(own: OwnImages, detector: Detector, count: int, file: Path) -> Statistics:
    """Statistics of `count` of the teacher's own images, from the file where it has them. A file
    that is damaged, gone or of an earlier version costs the drawing of them: they are the same
    ones; one of a teacher whose schedule or clipping was another is not taken.
    """
    wanted = (detector.stamp, count, own.drawn_by)
    if file.exists():
        with contextlib.suppress(HsiviError):
            kept = load_statistics(file)
            if (kept.stamp, kept.moments.count, kept.drawn_by) == wanted:
                return kept
    found = statistics_of_batches(
        own.batches(count), count, "the teacher's own images", detector, keep_features=True
    )
    if not found.moments.cov.trace() > 0:
        raise HsiviError(
            "the teacher's own images are all alike, so nothing can be judged by them: look at "
            f"`hsivi sample TEACHER --solver {OWN_SOLVER} --nfe {OWN_CALLS}`, or name images by "
            "--reference"
        )
    return replace(found, drawn_by=own.drawn_by)


def read_files(*sources: str) -> dict[str, Statistics]:
    """The statistics files among the sources, each read once, by the names that were given."""
    return {
        source: load_statistics(embedded(source))
        for source in sources
        if kind_of(source) == "statistics"
    }


def open_detector(
    config: TrainConfig | FidConfig | CompareConfig,
    files: dict[str, Statistics],
    device: torch.device,
) -> Detector:
    """The detector named, or without one that of the first of the statistics files to tell it;
    where no file does, it is `inception`.

    A file of another detector is refused; one that does not tell its detector is believed.
    """
    stamps = ((source, statistics.stamp) for source, statistics in files.items())
    told = (name_of_detector(source, stamp) for source, stamp in stamps if stamp is not None)
    weights = Path(config.detector_weights) if config.detector_weights else None
    detector = load_detector(config.detector or next(told, None), weights, device)
    for source, statistics in files.items():
        check_detector(source, statistics, detector)
    return detector
