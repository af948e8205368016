"""The evaluations of a training: how far the averaged student is from the reference."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from ..config import TrainConfig
from ..files.device import enough_memory
from ..files.images import has_picture, save_grid
from ..files.logs import append, rows_of
from ..method.networks import Networks
from ..models.draw import draw
from ..models.networks import averaged_sampler
from ..models.teacher import Teacher
from .detectors import Detector
from .frechet import Moments, frechet_distance
from .statistics import Statistics, moments_of

EVAL_SEED = 1_000_000_000  # the seeds that judge a training are none that a user is likely to draw
GRID_COUNT = 64  # images of a kept grid
BATCH = 256  # images drawn at once
COLLAPSED, EVALUATIONS = 2.0, 3  # times the best, in so many evaluations one after another
SAME = 1e-4  # relative: another machine's features of the same images differ by less


def evaluate(
    networks: Networks,
    teacher: Teacher,
    judge: tuple[Detector, Statistics],
    config: TrainConfig,
    step: int,
    out: Path,
) -> dict:
    """The averaged student's distances to the reference, by budget, and their geometric mean, in
    which every budget counts by ratios: a line for each in evaluations.jsonl, a grid of images
    in eval/.

    Returns  step, distance (the mean), distances and what they were measured by
    """
    (detector, reference), count = judge, config.eval_count
    ruled = {"count": count, "detector": detector.stamp, "reference": config.reference}
    ruled["moments"] = sizes_of(reference.moments)
    distances = {}
    for chain in networks.chains:
        sampler = averaged_sampler(networks, chain, teacher, config.dtype)
        seeds = range(EVAL_SEED, EVAL_SEED + count)
        size = min(count, BATCH)
        few = max(2, size // 2)
        with enough_memory(
            f"in the evaluation at step {step}, which draws {size} images at once",
            f"--eval-count {few} or fewer draws no more than these at once",
        ):
            batches = list(draw(sampler, seeds, size, networks.device))
            moments, _ = moments_of(batches, detector)
        if has_picture(teacher.shape[0]):
            file = out / "eval" / f"step-{step:06d}-{chain.nfe}.png"
            save_grid(torch.cat(batches)[:GRID_COUNT], file)
        distance = distances[str(chain.nfe)] = frechet_distance(moments, reference.moments)
        row = {"step": step, "nfe": chain.nfe, "distance": distance}
        append(out / "evaluations.jsonl", row | ruled)
    mean = math.prod(max(0.0, d) for d in distances.values()) ** (1 / len(distances))
    return {"step": step, "distance": mean, "distances": distances} | ruled


def is_better(found: dict, best: dict | None) -> bool:
    """Whether an evaluation is the best so far: no other by the same ruler is as good."""
    return best is None or found["distance"] < best["distance"] or not same_ruler(found, best)


def sizes_of(moments: Moments) -> list[float]:
    """By what one reference is told from another of its name: |mean|, trace and norm of the
    covariance.
    """
    mean, cov = moments.mean, moments.cov
    return [mean.norm().item(), cov.trace().item(), cov.norm().item()]


def same_ruler(one: dict, best: dict) -> bool:
    """Whether two distances were measured alike: by another ruler they say something else.

    Of a reference without moments, in earlier versions' files, the name is believed.
    """
    if any(one[key] != best[key] for key in ("count", "detector")):
        return False
    if not one.get("moments") or not best.get("moments"):
        return one["reference"] == best.get("reference")
    pairs = zip(one["moments"], best["moments"], strict=True)
    return all(math.isclose(a, b, rel_tol=SAME) for a, b in pairs)


def has_collapsed(file: Path, best: dict) -> bool:
    """Whether the last evaluations of a log, and not the one before them, are so much worse than
    the best that the student may have collapsed. True once for each time that it does.
    """
    distances = {}
    for row in rows_of(file, "distance", "count", "detector", "reference"):
        if same_ruler(row, best):
            distances.setdefault(row["step"], []).append(max(0.0, row["distance"]))
    means = [math.prod(each) ** (1 / len(each)) for each in distances.values()]
    worse = [mean > COLLAPSED * best["distance"] for mean in means[-EVALUATIONS - 1 :]]
    return worse[-EVALUATIONS:] == [True] * EVALUATIONS and worse[:-EVALUATIONS] != [True]
