"""A judge, a detector with a reference: what images are judged by in training and by `compare`;
`fid` has the two sides that it compares share a detector in the same way.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from ..config import CompareConfig, FidConfig, TrainConfig
from ..files.places import embedded
from ..files.progress import say
from ..models.teacher import Teacher
from .detectors import Detector, load_detector
from .statistics import (
    Statistics,
    check_detector,
    few_images,
    kind_of,
    load_statistics,
    name_of_detector,
    statistics_of,
    unlike_images,
    unsure_of,
)


class Judge(NamedTuple):
    """detector   a frozen network that turns images into features
    reference  statistics of the images that others are measured from
    """

    detector: Detector
    reference: Statistics


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


def make_judge(config: TrainConfig, teacher: Teacher) -> Judge | None:
    """The judge of a training, where there is a --reference. Refuses a detector that does not take
    the teacher's images, and warns of what makes a distance doubtful.
    """
    if config.reference is None:
        return None
    judge = open_judge(config, config.reference, teacher.unet.device)
    detector, reference = judge
    detector.features(torch.zeros(2, *teacher.image, dtype=torch.uint8))
    warnings = unsure_of(config.reference, reference)
    count = config.eval_count
    warnings.append(few_images(f"--eval-count {count}", count, detector.feature_dim))
    warnings.append(unlike_images(config.reference, reference.image, "the student", teacher.image))
    for line in filter(None, warnings):
        say(line)
    return judge


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
