"""`hsivi info`: what a run, a teacher, a set of images or a statistics file is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..config import InferConfig
from ..density.stored import read_info
from ..errors import HsiviError, counted
from ..files.images import MARK, open_images
from ..files.places import embedded, embedded_names
from ..files.whole import is_fresh, read_json
from ..metrics.statistics import kind_of, load_statistics, mark_words
from ..models.description import is_student
from ..models.layouts import leads_to_teacher
from ..models.loading import load_teacher, refuse_origin
from ..models.student import load_student
from ..models.teacher import Teacher


def run(path: str | None, as_json: bool, origin: dict[str, str | None]) -> None:
    """Print what lies at `path`, a fact a line, or all as one JSON object.

    origin  revision, variant and subfolder of a teacher
    """
    facts = describe(path, **origin)
    if as_json:
        print(json.dumps(facts))
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        print(f"{key.ljust(width)}  {value}")


def describe(path: str | None, **origin: str | None) -> dict:
    if path is None:
        return describe_teacher(None, **origin) | {"comes with hsivi": ", ".join(embedded_names())}
    facts = describe_own(path, within=bool(origin.get("subfolder")))
    if facts is None:
        return describe_teacher(path, **origin)
    refuse_origin(origin, path)
    return facts


def describe_own(path: str, within: bool) -> dict | None:
    """The facts of a run, images or statistics; None where it is a teacher if anything.

    within  whether a teacher is looked for in a folder of it
    """
    place = embedded(path)
    if is_student(place):
        return describe_student(path)
    if (place / "infer.json").is_file():
        return describe_inference(place)
    if (place / "boost.json").is_file():
        return describe_boosting(place / "boost.json")
    if path.endswith(".npz"):
        statistics = kind_of(place) == "statistics"
        return describe_statistics(place) if statistics else describe_images(place)
    if place.is_dir() and is_fresh(place):  # which is told as a teacher's folder that it is not
        return None
    kind = kind_of(path) if place.is_dir() and not within else None
    if kind == "folder" and not leads_to_teacher(place):
        return describe_images(place)
    if kind == "both":
        return describe_images(place) | {"and of a network": mark_words(path)}
    return None


def describe_statistics(file: Path) -> dict:
    statistics = load_statistics(file)
    return {
        "kind": "statistics",
        "detector": statistics.stamp or "unknown",
        "count": statistics.moments.count or "unknown",
        "image": size_words(statistics.image) if statistics.image else "unknown",
        "features": len(statistics.moments.mean),
        "kept features": 0 if statistics.features is None else len(statistics.features),
    }


def size_words(image: Sequence[int]) -> str:
    """An image's shape (H, W, C) as networks name it, "3x32x32"."""
    height, width, channels = image
    return f"{channels}x{height}x{width}"


def describe_images(path: Path) -> dict:
    """A folder or an .npz file of images; of one that `hsivi sample` filled, what drew it too."""
    count, batches = open_images(path, batch_size=1)
    facts = {"kind": "images", "count": count, "image": size_words(next(iter(batches)).shape[1:])}
    if (path / MARK).is_file():
        mark = read_json(path / MARK)
        known = ("network", "nfe", "solver", "dtype")
        facts |= {"kind": "samples"} | {key: mark[key] for key in known if mark.get(key)}
        if isinstance(mark.get("labels"), dict):
            facts["labels"] = ", ".join(sorted({*map(str, mark["labels"].values())}))
    return facts


def describe_inference(folder: Path) -> dict:
    info = read_info(folder)
    config = InferConfig(**info["config"])
    return {
        "kind": "inference",
        "target": info["target"],
        "coordinates": info["dim"],
        "layers": config.layers,
        "objective": config.objective,
        "bridge": config.bridge,
        "steps": f"{info['step']} of {config.steps}",
        "minutes": round(info["seconds"] / 60, 1),
    }


def describe_boosting(file: Path) -> dict:
    info = read_json(file)
    try:
        config = info["config"]
        return {
            "kind": "boosted trees",
            "targets": ", ".join(column["name"] for column in info["targets"]),
            "columns": ", ".join(column["name"] for column in info["inputs"]),
            "table": info["table"],
            "rows": info["rows"],
            "layers": f"{info['step']} of {config['calls']}",
            "trees": config["trees"],
            "minutes": round(info["seconds"] / 60, 1),
        }
    except (KeyError, TypeError, OverflowError) as error:
        raise HsiviError(f"{file} describes no run of this version ({error})") from error


def describe_teacher(path: str | None, **origin: str | None) -> dict:
    teacher = load_teacher(path, **origin)
    return {
        "kind": "teacher",
        "name": teacher.name,
        "weights": teacher.digest,
        "parameters": sum(p.numel() for p in teacher.unet.parameters()),
        "image": "x".join(map(str, teacher.shape)),
        "classes": teacher.label_count or "none",
        "prediction": teacher.prediction,
        "times": len(teacher.table),
        "schedule": teacher.schedule_name + betas_of(teacher),
        "alpha_bar at the end": f"{teacher.table[-1].item():.2e}",
    }


def betas_of(teacher: Teacher) -> str:
    """Where a schedule that is known by a hash begins and ends."""
    betas = teacher.scheduler.config.trained_betas
    return "" if betas is None else f", betas {betas[0]:g} to {betas[-1]:g}"


def describe_student(path: str) -> dict:
    student = load_student(path)
    info, best = student.info, student.info.get("best")
    regressed = info["config"].get("regress_steps", 0)
    facts = {
        "kind": "student",
        "teacher": f"{info['teacher']['name']} ({info['teacher']['digest']})",
        "weights": student.model.digest,
        "calls": ", ".join(map(str, student.chains)),
        "steps": f"{info['step']} of {info['config'].get('steps', 'unknown')}"
        + (f", after {regressed} of regression" if regressed else ""),
        "minutes": round(info["seconds"] / 60, 1),
        "kept": f"distance {best['distance']:.2f} at step {best['step']} "
        f"({best['count']} images, {best['detector']})"
        if best
        else "not measured",
    }
    for nfe, chain in student.chains.items():
        calls = counted(nfe, "call")
        facts[f"times at {calls}"] = ", ".join(
            "clean data" if t < 0 else f"{t:g}" for t in chain.time.tolist()
        )
        facts[f"noise shares at {calls}"] = ", ".join(
            f"{s:.3g}" for s in chain.noise_share.tolist()
        )
        if chain.top_sd != 1:
            facts[f"sd of x_K at {calls}"] = f"{chain.top_sd.item():.3g}"
    return facts
