"""`hsivi info`: what a run, a teacher or a statistics file is."""

from __future__ import annotations

import json

from .config import HsiviError, embedded
from .detector import kind_of, load_statistics
from .student import is_student, load_student
from .teacher import load_teacher


def run(path: str | None, as_json: bool) -> None:
    """Print what lies at `path`, a fact a line, or all as one JSON object."""
    facts = describe(path)
    if as_json:
        print(json.dumps(facts))
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        print(f"{key.ljust(width)}  {value}")


def describe(path: str | None) -> dict:
    if path is not None and is_student(path):
        return describe_student(path)
    if path is not None and not path.endswith(".npz"):
        return describe_teacher(path)
    if path is None:
        return describe_teacher(None)
    if kind_of(path) != "statistics":
        raise HsiviError(
            f"{path} holds images; hsivi info describes runs, teachers and statistics files"
        )
    statistics = load_statistics(embedded(path))
    return {
        "kind": "statistics",
        "detector": statistics.stamp or "unknown",
        "count": statistics.moments.count or "unknown",
        "features": len(statistics.moments.mean),
        "kept features": 0 if statistics.features is None else len(statistics.features),
    }


def describe_teacher(path: str | None) -> dict:
    teacher = load_teacher(path)
    return {
        "kind": "teacher",
        "name": teacher.name,
        "weights": teacher.digest,
        "parameters": sum(p.numel() for p in teacher.unet.parameters()),
        "image": "x".join(map(str, teacher.shape)),
        "classes": teacher.label_count or "none",
        "prediction": teacher.prediction,
        "times": len(teacher.table),
        "schedule": teacher.schedule_name,
        "alpha_bar at the end": f"{teacher.table[-1].item():.2e}",
    }


def describe_student(path: str) -> dict:
    student = load_student(path)
    info, best = student.info, student.info["best"]
    regressed = info["config"].get("regress_steps", 0)
    facts = {
        "kind": "student",
        "teacher": f"{info['teacher']['name']} ({info['teacher']['digest']})",
        "weights": student.model.digest,
        "calls": ", ".join(map(str, student.chains)),
        "steps": f"{info['step']} of {info['config']['steps']}"
        + (f", after {regressed} of regression" if regressed else ""),
        "minutes": round(info["seconds"] / 60, 1),
        "best distance": f"{best['distance']:.2f} at step {best['step']} "
        f"({best['count']} images, {best['detector']})"
        if best
        else "not measured",
    }
    for nfe, chain in student.chains.items():
        facts[f"times at {nfe} calls"] = ", ".join(f"{t:g}" for t in chain.time.tolist())
        facts[f"noise shares at {nfe} calls"] = ", ".join(
            f"{s:.3g}" for s in chain.noise_share.tolist()
        )
    return facts
