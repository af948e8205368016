"""Samplers drawn, and measured by a judge; what was drawn is kept by its content."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import stdev

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from ..config import CompareConfig
from ..errors import HsiviError
from ..files.device import enough_memory, once, smaller_batch
from ..files.digest import digest
from ..files.images import NotFinite, read_npz, save_npz
from ..files.whole import read_json, write_text
from ..models.draw import Sampler, chain_digest, draw
from .frechet import (
    NEIGHBOURS,
    frechet_distance,
    kernel_distance,
    precision_recall,
    standard_error,
)
from .judge import Judge
from .statistics import (
    Statistics,
    dealt_back,
    gathered,
    load_statistics,
    moments_of,
    random_rows,
    save_statistics,
)

RECALL_COUNT = 2000  # features a side for precision and recall: their cost grows with its square
GRID_COUNT = 36


def cache_of(config: CompareConfig) -> Path:
    """Where what was drawn is kept."""
    if chosen := config.cache or os.environ.get("HSIVI_CACHE"):
        return Path(chosen)
    try:
        return Path.home() / ".cache" / "hsivi"
    except RuntimeError as error:  # of a user that the system does not know, as in a container
        raise HsiviError(
            "there is no home folder to keep images in: give --cache, or set HSIVI_CACHE"
        ) from error


def device_name(device: torch.device) -> str:
    """ "cpu", or a graphics card's model: cards round differently."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


class Ruler:
    """Draws samplers and measures how far they are from the reference, remembering what was
    drawn. Processes that were launched together draw a share of the seeds each.
    """

    def __init__(self, config: CompareConfig, judge: Judge, device: torch.device):
        self.config, self.judge, self.device = config, judge, device
        self.cache, self.state = cache_of(config), PartialState()
        self.once = once(self.state)  # by the main process, which tells the others
        self.machine = f"{platform.node()}, {torch.get_num_threads()} threads"
        if self.state.num_processes > 1:
            self.machine += f", {self.state.num_processes} processes"
        real = judge.reference.features
        # references may be sorted by class; the same part for every row
        size = 0 if real is None else min(len(real), config.count, RECALL_COUNT)
        self.real = random_rows(real, size, config.seed).to(device) if size else None

    def measure(self, sampler: Sampler) -> dict:
        """A row, as docs/formats.md describes it: means over the repeats, on seeds that do not
        overlap.
        """
        config, parts, broken = self.config, [], {}
        try:
            for repeat in range(config.repeats):
                parts.append(self.measure_set(sampler, config.seed + repeat * config.count))
        except NotFinite as error:  # one sampler's fault; the others go on
            parts, broken = [], {"error": str(error)}

        def mean(key: str) -> float | None:
            values = [part[key] for part in parts]
            return sum(values) / len(values) if values and None not in values else None

        distances = [part["distance"] for part in parts]
        return {
            "name": sampler.name,
            "kind": sampler.kind,
            "nfe": sampler.nfe,
            "distance": mean("distance"),
            "distances": distances,
            "standard_error": error_of_mean(distances, [part["error"] for part in parts]),
            "precision": mean("precision"),
            "recall": mean("recall"),
            "count": config.count,
            "seconds": mean("seconds"),
            "how": "measured",
        } | broken

    def measure_set(self, sampler: Sampler, seed: int) -> dict[str, float | None]:
        """What the images of seeds seed.. say of a sampler."""
        seen, seconds = self.statistics(sampler, seed, self.config.count)
        return self.once(lambda: self.measured(seen, seconds))

    def measured(self, seen: Statistics, seconds: float | None) -> dict[str, float | None]:
        precision = recall = None
        if self.real is not None and len(self.real) > NEIGHBOURS:
            # as many of both, or one manifold would be the finer
            fake = seen.features[: len(self.real)].to(self.device)
            precision, recall = precision_recall(self.real, fake)
        reference = self.judge.reference.moments
        return {
            "distance": frechet_distance(seen.moments, reference),
            "error": standard_error(seen.moments, reference, seen.features),
            "precision": precision,
            "recall": recall,
            "seconds": seconds,
        }

    @property
    def tune_count(self) -> int:
        """Images by which spacings are chosen."""
        return min(self.config.tune_count, self.config.count)

    @property
    def tunes_by_kernel(self) -> bool:
        """Whether spacings are chosen by the kernel distance, which needs no covariance: where
        their images are no more than the features, and the reference keeps features.
        """
        return self.tune_count <= self.judge.detector.feature_dim and self.real is not None

    def tuning_distance(self, sampler: Sampler, count: int) -> float:
        """By which spacings are chosen: the Fréchet or the kernel distance of the first `count`
        images, infinite where they hold NaN.
        """
        try:
            statistics, _ = self.statistics(sampler, self.config.seed, count)
        except NotFinite:
            return float("inf")
        return self.once(lambda: self.distance(statistics, count))

    def distance(self, seen: Statistics, count: int) -> float:
        if not self.tunes_by_kernel:
            return frechet_distance(seen.moments, self.judge.reference.moments)
        rng, fake = torch.Generator().manual_seed(self.config.seed), seen.features.to(self.device)
        return kernel_distance(fake, self.real, subsets=1, subset_size=count, rng=rng)[0]

    def is_slow(self, sampler: Sampler) -> bool:
        """Whether a row would take minutes: on a CPU, but for what the cache has."""
        config = self.config
        seeds = range(config.seed, config.seed + config.repeats * config.count, config.count)
        files = [self.file(sampler, seed, config.count) for seed in seeds]
        return self.device.type == "cpu" and not self.once(lambda: all(map(self.kept, files)))

    def file(self, sampler: Sampler, seed: int, count: int) -> Path:
        """Where the cache keeps a draw, without suffix: a name made of all that decides it."""
        key = {
            "network": sampler.digest,
            "chain": chain_digest(sampler),
            "seeds": [seed, count],
            "dtype": self.config.dtype,
            "batch_size": self.config.batch_size,
            "detector": self.judge.detector.stamp,
            "device": device_name(self.device),
        }
        return self.cache / digest(json.dumps(key, sort_keys=True))[:32]

    def statistics(
        self, sampler: Sampler, seed: int, count: int
    ) -> tuple[Statistics, float | None]:
        """The statistics of images of seeds seed.., from the cache or drawn, and the seconds that
        drawing them took, None where it was on another machine. The first images are kept too.
        """
        file = self.file(sampler, seed, count)
        if found := self.once(lambda: self.kept(file)):
            return found
        drawn = self.drawn(sampler, seed, count)
        return self.once(lambda: self.keep(file, sampler, *drawn))

    def keep(
        self, file: Path, sampler: Sampler, found: Statistics, first: Tensor, seconds: float
    ) -> tuple[Statistics, float]:
        """What was drawn, as the cache keeps it from now on."""
        archive = file.with_suffix(".npz")
        save_statistics(archive, replace(found, features=found.features[:RECALL_COUNT]))
        save_npz(first, file.with_suffix(".first.npz"))
        facts = {"name": sampler.name, "nfe": sampler.nfe, "seconds": seconds}
        facts["machine"] = self.machine
        facts["sum"] = digest(json.dumps(facts), archive.read_bytes())
        write_text(file.with_suffix(".json"), json.dumps(facts) + "\n")
        return load_statistics(archive), seconds  # features rounded, as a later run reads them

    def kept(self, file: Path) -> tuple[Statistics, float | None] | None:
        """What the cache keeps of a draw; None where that is nothing, or not as it was written."""
        try:
            facts, archive = read_json(file.with_suffix(".json")), file.with_suffix(".npz")
            if facts.pop("sum") != digest(json.dumps(facts), archive.read_bytes()):
                return None
            seconds = facts["seconds"] if facts["machine"] == self.machine else None
            return load_statistics(archive), seconds
        except (HsiviError, OSError, KeyError):
            return None

    def drawn(self, sampler: Sampler, seed: int, count: int) -> tuple[Statistics, Tensor, float]:
        """The statistics of images of seeds seed.., the first images, and the seconds that drawing
        took. Of too few for a covariance in every process, each draws them all.
        """
        seeds, world = range(seed, seed + count), self.state.num_processes
        size = min(count, self.config.batch_size)  # however many draw: batches decide rounding
        draws = self.drawn_here if count < 2 * world or world == 1 else self.drawn_together
        what = f"for {size} images at once of {sampler.name}, {sampler.nfe} calls"
        with enough_memory(what, smaller_batch(size)):
            return draws(sampler, seeds, size)

    def drawn_together(
        self, sampler: Sampler, seeds: range, size: int
    ) -> tuple[Statistics, Tensor, float]:
        """`drawn`, every process its share."""
        mine, broken = seeds[self.state.process_index :: self.state.num_processes], None
        try:
            own, first, seconds = self.drawn_here(sampler, mine, size)
        except NotFinite as error:
            broken = str(error)
        if told := next(filter(None, gather_object([broken])), None):
            raise NotFinite(told)  # by all, or some would wait for the others
        firsts, clocks = zip(*gather_object([(first, seconds)]), strict=True)
        return gathered(own, len(seeds)), dealt_back(firsts, GRID_COUNT), max(clocks)

    def drawn_here(
        self, sampler: Sampler, seeds: range, size: int
    ) -> tuple[Statistics, Tensor, float]:
        """`drawn`, of this process's seeds."""
        clock, first, detector = Clock(), [], self.judge.detector

        def looked_at(batches: Iterator[Tensor]) -> Iterator[Tensor]:
            for images in batches:
                first.extend(images[: GRID_COUNT - len(first)])
                yield images

        name = f"{sampler.name}, {sampler.nfe} calls"
        with tqdm(total=len(seeds), unit=" images", desc=name, disable=None, leave=False) as bar:
            batches = clock.time(draw(sampler, seeds, size, self.device), bar)
            moments, features = moments_of(looked_at(batches), detector, keep_features=True)
        return Statistics(moments, detector.stamp, features), torch.stack(first), clock.seconds

    def first_images(self, sampler: Sampler) -> Tensor:
        """The first of the images that a row was measured on."""
        seed, count = self.config.seed, self.config.count
        grid = self.file(sampler, seed, count).with_suffix(".first.npz")
        with contextlib.suppress(HsiviError):
            return read_npz(grid)
        seeds = range(seed, seed + min(count, GRID_COUNT))  # the cache has lost them
        return torch.cat(list(draw(sampler, seeds, len(seeds), self.device)))


def error_of_mean(distances: list[float], errors: list[float]) -> float | None:
    """The standard error of the mean over sets of images: by the errors of the sets, or by their
    spread where that is larger; None where there is no set.
    """
    if not distances:
        return None
    spread = stdev(distances) / math.sqrt(len(distances)) if len(distances) > 1 else 0.0
    return max(math.hypot(*errors) / len(errors), spread)


class Clock:
    """Seconds spent inside an iterator."""

    seconds = 0.0

    def time(self, batches, bar):
        while True:
            begin = time.perf_counter()
            images = next(batches, None)
            self.seconds += time.perf_counter() - begin
            if images is None:
                return
            bar.update(len(images))
            yield images
