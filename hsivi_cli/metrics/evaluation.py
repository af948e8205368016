"""The evaluations of a training: how far the averaged student is from the reference, and how much
of its variety it has.

The first one is of the untrained start, the next of what regression makes of it, where there is
any. From data the least distance is the best. The teacher's own images are no such measure: a
student of a weak teacher leaves them as it improves. There the recipe is trusted while the start's
recall of them is kept: loosely as far as its default moves a student, closely from there on, where
what has lost some has to come nearer to them.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from ..config import OWN, TrainConfig
from ..files.device import enough_memory
from ..files.images import has_picture, save_grid
from ..files.logs import append, rows_of
from ..files.whole import all_finite, is_finite
from ..method.networks import Networks
from ..method.steps import TRUSTED, moved
from ..models.draw import draw
from ..models.networks import averaged_sampler
from ..models.teacher import Teacher
from .frechet import NEIGHBOURS, Moments, frechet_distance, precision_recall, standard_error
from .judge import Judge
from .statistics import moments_of, random_rows

EVAL_SEED = 1_000_000_000  # the seeds that judge a training are none that a user is likely to draw
GRID_COUNT = 64  # images of a kept grid
BATCH = 256  # images drawn at once
COLLAPSED, EVALUATIONS = 2.0, 3  # times the best, in so many evaluations one after another
# of a student judged by its teacher: the part of recall that it keeps, and how far it may be from
# the teacher's own images, in parts of their features' variance
KEPT, LOST = 0.88, 0.3  # within TRUSTED
HELD, LEFT = 0.97, 0.1  # beyond: all recall but for chance
CHANCE = math.sqrt(2)  # standard errors: two sets of one sampler's images differ by as much
SAME = 1e-4  # relative: another machine's features of the same images differ by less


def evaluate(
    networks: Networks,
    teacher: Teacher,
    judge: Judge,
    config: TrainConfig,
    at: dict[str, int],
    out: Path,
) -> dict:
    """The averaged student's distances to the reference, by budget, and their geometric mean, in
    which every budget counts by ratios: a line for each in evaluations.jsonl, a grid of images
    in eval/.

    at       the step, and how many rounds are over

    Returns  at, moved (the student's rates summed over its steps), distance (the mean), distances,
             error (the largest standard error of them), recall (the mean, None where the reference
             keeps no features), and what they were measured by
    """
    (detector, reference), count, step = judge, config.eval_count, at["step"]
    ruled = {"count": count, "detector": detector.stamp, "reference": config.reference}
    ruled["moments"] = sizes_of(reference.moments)
    distances, errors, recalls = {}, [], []
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
            moments, features = moments_of(batches, detector, keep_features=True)
        if has_picture(teacher.shape[0]):
            when = f"step-{step:06d}" if at["round"] else "start"
            save_grid(torch.cat(batches)[:GRID_COUNT], out / "eval" / f"{when}-{chain.nfe}.png")
        distance = distances[str(chain.nfe)] = frechet_distance(moments, reference.moments)
        errors.append(standard_error(moments, reference.moments, features))
        recalls.append(recall_of(reference.features, features))
        row = {"nfe": chain.nfe, "distance": distance, "recall": recalls[-1]}
        append(out / "evaluations.jsonl", at | row | ruled)
    mean = math.prod(max(0.0, d) for d in distances.values()) ** (1 / len(distances))
    recall = None if None in recalls else sum(recalls) / len(recalls)
    found = {
        "moved": moved(config, step),
        "distance": mean,
        "distances": distances,
        "error": max(errors),
        "recall": recall,
    }
    return at | found | ruled


def recall_of(real: Tensor | None, features: Tensor) -> float | None:
    """The part of the reference's images that lie where the student's do, of as many as of its own
    at most; None where there are no features, or too few.
    """
    if real is None or min(len(real), len(features)) <= NEIGHBOURS:
        return None
    few = random_rows(real, len(features), seed=0).to(features)
    return precision_recall(few, features)[1]


def better(found: dict, best: dict | None) -> dict | None:
    """An evaluation as it is kept if it is the best so far, with the start's distance and recall;
    else None.
    """
    begun = {"start": {key: found[key] for key in ("distance", "recall")}}
    if best is None or not same_ruler(found, best):
        return found | begun
    start = best.get("start")  # which earlier versions' files do not have
    if start is None or found["reference"] != OWN:
        gains = found["distance"] < best["distance"]
    elif not found["moved"]:  # it was regressed: steps begin here
        return found | begun if found["distance"] < best["distance"] else None
    elif found["moved"] <= TRUSTED:
        gains = recalls(found, start, KEPT) and is_near(found, start, LOST)
    else:
        gains = recalls(found, start, KEPT) and (
            found["distance"] < best["distance"] - CHANCE * found["error"]
            or holds(found, best, start)
        )
    return found | ({"start": start} if start else {}) if gains else None


def holds(found: dict, best: dict, start: dict) -> bool:
    """Whether a student that leaves its teacher's own images may do so towards the data: it recalls
    them as well as the start and the best before, and is no further than the best, or not far.
    """
    if None in (found["recall"], best["recall"], start["recall"]):
        return False
    held = recalls(found, start, HELD) and recalls(found, best, HELD)
    return held and is_near(found, best, LEFT)


def recalls(found: dict, other: dict, part: float) -> bool:
    """Whether a student has kept such a part of another's recall, where both are told."""
    if None in (found["recall"], other["recall"]):
        return True
    return found["recall"] >= part * other["recall"]


def is_near(found: dict, other: dict, part: float) -> bool:
    """Whether a student is no further from the reference than another, or than such a part of its
    features' variance.
    """
    return found["distance"] <= max(other["distance"], part * found["moments"][1])


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
    mine, theirs = one["moments"], best["moments"]
    return len(mine) == len(theirs) and all(
        math.isclose(a, b, rel_tol=SAME) for a, b in zip(mine, theirs, strict=True)
    )


def has_collapsed(file: Path, best: dict) -> bool:
    """Whether the last evaluations of a log, and not the one before them, are so much worse than
    the best that the student may have collapsed. True once for each time that it does.
    """
    distances = {}
    for row in rows_of(file, "distance", "count", "detector", "reference"):
        sound = is_finite(row["distance"]) and all_finite(row.get("moments") or [])
        if sound and same_ruler(row, best):
            distances.setdefault(row["step"], []).append(max(0.0, row["distance"]))
    means = [math.prod(each) ** (1 / len(each)) for each in distances.values()]
    worse = [mean > COLLAPSED * best["distance"] for mean in means[-EVALUATIONS - 1 :]]
    return worse[-EVALUATIONS:] == [True] * EVALUATIONS and worse[:-EVALUATIONS] != [True]
