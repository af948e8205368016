"""`hsivi fid A B`: the Fréchet distance between two sets of images, and on request KID, precision
and recall.

The number is pytorch-fid's where the detector is `inception`. It falls as the number of images
grows, so its name tells it: `fid` from 50,000 images on, else `fid5k`, `fid2.5k`, ... after the
smaller of the two sets. By another detector it is no FID, and called `frechet5k` and so on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState

from ..config import FidConfig
from ..errors import HsiviError
from ..files.device import drawing, enough_memory, pick_device, smaller_batch
from ..files.outputs import STATISTICS, check_output
from ..metrics.detectors import INCEPTION, Detector
from ..metrics.frechet import frechet_distance, kernel_distance, precision_recall
from ..metrics.judge import open_detector, read_files
from ..metrics.statistics import (
    Statistics,
    check_images,
    check_stamps,
    gathered,
    kind_of,
    random_rows,
    save_statistics,
    statistics_of,
    statistics_of_batches,
    unlike_images,
    unsure_of,
)
from ..models.draw import Sampler, shard_of, student_sampler
from ..models.student import load_student

SHIPPED = "embedded:students/4"  # what is scored where nothing is named
FULL_COUNT = 50_000  # images from which on a distance may be called FID
SUBSET = 1000  # images in each of KID's subsets
FILES_AT_ONCE = 256  # images of a folder or file
KEPT_FEATURES = 5000  # in a statistics file, for KID and recall of later comparisons


def run(config: FidConfig) -> None:
    """Print the distance between config.a and config.b; write config.a's statistics where asked."""
    if config.a is None:
        config = replace(config, a=SHIPPED, b="embedded:reference.npz")
        print(f"{config.a} against {config.b}", file=sys.stderr)
    if config.b is None and config.save_stats is None:
        raise HsiviError(
            "nothing to compare with: give a second set (folder, .npz, run or data set), "
            "or --save-stats FILE"
        )
    read = [config.a, config.b, config.detector, config.detector_weights, config.data_root]
    check_output(config.save_stats, STATISTICS, read, config.force)
    sources = [source for source in (config.a, config.b) if source is not None]
    files, detector = read_files(*sources), None
    samplers = _samplers([source for source in sources if source not in files], config)
    if config.detector is not None or files.keys() < {*sources}:  # statistics alone need none
        detector = open_detector(config, files, drawing(config.device)[1])

    def seen(source: str) -> Statistics:
        return files.get(source) or _seen(source, samplers.get(source), detector, config)

    a = seen(config.a)
    main = PartialState().is_main_process
    if config.save_stats is not None and main:
        _save(Path(config.save_stats), a, config.seed)
    if config.b is None:
        return
    b = seen(config.b)
    if not main:
        return
    warnings = [*unsure_of(config.a, a), *unsure_of(config.b, b)]
    warnings.append(unlike_images(config.b, b.image, config.a, a.image))
    for line in filter(None, warnings):
        print(line, file=sys.stderr)
    report = compare(a, b, config)
    print(json.dumps(report) if config.json else _line(report))


def compare(a: Statistics, b: Statistics, config: FidConfig) -> dict:
    """All that is said of two sets: the JSON object that docs/formats.md describes."""
    check_stamps((config.a, a.stamp), (config.b, b.stamp))
    widths = len(a.moments.mean), len(b.moments.mean)
    if widths[0] != widths[1]:
        raise HsiviError(
            f"{config.a} has {widths[0]} features, {config.b} has {widths[1]}: "
            "made by different detectors"
        )
    counts = [count for count in (a.moments.count, b.moments.count) if count]
    report = {
        "fid": frechet_distance(a.moments, b.moments),
        "name": distance_name(min(counts, default=None), a.stamp or b.stamp, widths[0]),
        "count": a.moments.count or None,
        "reference_count": b.moments.count or None,
        "detector": a.stamp or b.stamp,
        "reference": str(config.b),
        "kid": None,
    }
    if config.kid:
        for source, statistics in ((config.a, a), (config.b, b)):
            if statistics.features is None:
                raise HsiviError(
                    f"--kid: {source} keeps no features; give its images, or a statistics file "
                    "written by `hsivi fid IMAGES --save-stats FILE`"
                )
        device = pick_device(config.device)
        fake, real = (side.features.to(device) for side in (a, b))
        rng = torch.Generator().manual_seed(config.seed)
        whole = max(len(fake), len(real)) <= SUBSET
        kid, deviation = kernel_distance(fake, real, 1 if whole else 100, SUBSET, rng=rng)
        report["kid"], report["kid_sd"] = kid, None if whole else deviation
        # both manifolds from equally many points, or the larger set's would be the finer one
        size = min(len(fake), len(real), KEPT_FEATURES)
        if size > 3:
            few = (random_rows(side, size, config.seed) for side in (real, fake))
            report["precision"], report["recall"] = precision_recall(*few)
    return report


def distance_name(count: int | None, stamp: str | None, width: int) -> str:
    """What a Fréchet distance of that many images is called: "fid", "fid10k", "fid0.5k" of
    Inception's features, "frechet10k" and the like of others, which measure in other units.

    A count that is not known is taken for a full one; a detector that is not known for Inception
    where its features are as many, as in plain statistics files.
    """
    inception = width == 2048 if stamp is None else stamp.split()[0] == INCEPTION
    size = "" if count is None or count >= FULL_COUNT else f"{count / 1000:g}k"
    return ("fid" if inception else "frechet") + size


def _line(report: dict) -> str:
    known = [str(report[key] or "unknown") for key in ("count", "reference_count")]
    lines = [f"{report['name']} {report['fid']:.4f}"]
    if report["kid"] is not None:
        deviation = "" if report["kid_sd"] is None else f" +- {report['kid_sd']:.6f}"
        lines.append(f"kid {report['kid']:.6f}{deviation}")
    lines += [f"{name} {report[name]:.4f}" for name in ("precision", "recall") if name in report]
    lines.append(f"images {known[0]} against {known[1]}")
    lines.append(f"detector {report['detector'] or 'unknown'}")
    return "\n".join(lines)


def _samplers(sources: Sequence[str], config: FidConfig) -> dict[str, Sampler]:
    """What draws the images of the networks among the sources. Refuses others that hold none:
    before a detector is fetched.
    """
    networks = [source for source in sources if kind_of(source) == "network"]
    for source in sources:
        if source not in networks:
            check_images(source)
    if not networks:
        return {}
    state, device = drawing(config.device)
    if config.count < 2 * state.num_processes:
        least = 2 * state.num_processes
        raise HsiviError(f"--count {config.count}: every process draws 2, so {least} at least")
    return {s: student_sampler(load_student(s, device), config.nfe) for s in networks}


def _seen(
    source: str, sampler: Sampler | None, detector: Detector, config: FidConfig
) -> Statistics:
    """Statistics of images, those of a network drawn now, by all processes together."""
    keep = config.kid or config.save_stats is not None
    if sampler is None:
        size = config.batch_size or FILES_AT_ONCE
        with enough_memory(f"seeing {size} images at once", smaller_batch(size)):
            return statistics_of(source, detector, config.data_root, size, keep)
    state, device = drawing(config.device)
    seeds, mine = range(config.seed, config.seed + config.count), config.count
    if state.num_processes > 1:
        mine = len(seeds[state.process_index :: state.num_processes])
    size, batches = shard_of(sampler, seeds, config.batch_size, device)
    with enough_memory(f"drawing and scoring {size} images at once", smaller_batch(size)):
        own = statistics_of_batches(batches, mine, source, detector, keep)
    return gathered(own, config.count) if state.num_processes > 1 else own


def _save(path: Path, statistics: Statistics, seed: int) -> None:
    if statistics.features is not None and len(statistics.features) > KEPT_FEATURES:
        few = random_rows(statistics.features, KEPT_FEATURES, seed)
        statistics = replace(statistics, features=few)
    save_statistics(path, statistics)
