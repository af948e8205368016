"""What a run's folder says of an inference: infer.json, read and checked in one place."""

from __future__ import annotations

from pathlib import Path

from ..config import COUNTS, InferConfig, are_settings
from ..errors import HsiviError
from ..files.whole import all_finite, is_finite, is_same, read_json

FORMAT = 2  # of infer.json and model.safetensors
NEEDED = {"layers", "steps", "student_rate"}  # of the configuration


def read_info(out: Path) -> dict:
    """infer.json of a run's folder. Refuses other versions' and damaged ones."""
    file = out / "infer.json"
    info = read_json(file)
    seconds = [info.get(key) for key in ("seconds", "cpu_seconds")]
    marks, config = info.get("fingerprint") or [], info.get("config")
    sound = {
        "format": is_same(info.get("format"), FORMAT),
        "target": isinstance(info.get("target"), str),
        "dim": is_count(info.get("dim"), 1),
        "step": is_count(info.get("step"), 0),
        "seconds": is_finite(seconds[0]),
        "cpu_seconds": is_finite(seconds[1]),
        "fingerprint": all_finite(marks),
        "config": are_settings(config, InferConfig) and config.keys() >= NEEDED,
    }
    if wrong := [key for key, so in sound.items() if not so]:
        raise HsiviError(
            f"{file} describes no run of this version ({', '.join(wrong)} is missing or damaged): "
            "choose another folder"
        )
    return info


def is_count(value: object, least: int) -> bool:
    return type(value) is int and least <= value < COUNTS
