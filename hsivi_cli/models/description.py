"""hsivi.json: what a student is and how it was made. docs/formats.md lists every field."""

from __future__ import annotations

import json
from pathlib import Path

from ..config import COUNTS
from ..errors import HsiviError
from ..files.places import embedded
from ..files.whole import all_finite, is_finite, is_same, read_json, write_text

FORMAT = 1


def is_student(path: str | Path) -> bool:
    return (embedded(path) / "hsivi.json").is_file()


# of hsivi.json: what must be there, and of which kind
FIELDS = {"teacher": [dict], "config": [dict], "step": [int], "seconds": [int, float]}
MAY_BE = {"best": dict, "starts": dict, "clip": dict, "regressed": int}


def read_info(folder: Path) -> dict:
    """hsivi.json of a run's folder. Refuses other versions' and damaged ones."""
    file = folder / "hsivi.json"
    info = read_json(file)
    if not is_same(info.get("format"), FORMAT):
        raise HsiviError(
            f"{file} has format {info.get('format')}, this version reads {FORMAT}: use a matching "
            "version of hsivi"
        )
    wrong = [key for key, kinds in FIELDS.items() if type(info.get(key)) not in kinds]
    wrong += [k for k, kind in MAY_BE.items() if type(info.get(k)) not in (kind, type(None))]
    if wrong := wrong or faults_of(info):
        raise HsiviError(
            f"{file} describes no run ({', '.join(wrong)} is missing or damaged): copy it again, "
            "or choose another folder"
        )
    best, budgets = info.get("best"), info.get("nfe")
    if isinstance(best, dict) and "distances" not in best and isinstance(budgets, list):
        # as the first versions wrote it, of one budget
        best["distances"] = {str(nfe): best.get("distance") for nfe in budgets}
    check_best(best, f"{file}: ")
    return info


def faults_of(info: dict) -> list[str]:
    """What of a hsivi.json whose parts are of their kinds holds what no run writes."""
    teacher, clip = info["teacher"], info.get("clip") or {"reach": 1.0}
    named = all(isinstance(teacher.get(key), str) for key in ("name", "digest"))
    sound = {
        "teacher": named and all(isinstance(value, str) for value in teacher.values()),
        "step": info["step"] >= 0,
        "seconds": 0 <= info["seconds"] < COUNTS * 3600,
        "starts": all(
            nfe.isdecimal() and len(nfe) < 9 and isinstance(start, str)
            for nfe, start in (info.get("starts") or {}).items()
        ),
        "clip": clip.keys() <= {"reach", "quantile"}
        and is_finite(clip.get("reach"))
        and clip["reach"] > 0
        and (clip.get("quantile") is None or is_part(clip["quantile"])),
    }
    return [key for key, so in sound.items() if not so]


BEST = {
    "step": [int], "distance": [int, float], "distances": [dict], "count": [int],
    "detector": [str], "reference": [str],
}  # fmt: skip


def check_best(best: dict | None, where: str = "") -> None:
    """Refuse a best evaluation that is none.

    where  begins the refusal: the file that it was read from
    """
    if best is None:
        return
    best = best if isinstance(best, dict) else {}
    wrong = [key for key, kinds in BEST.items() if type(best.get(key)) not in kinds]
    distances = best.get("distances")
    sound = {
        "distance": is_finite(best.get("distance")),
        "distances": isinstance(distances, dict) and all_finite(list(distances.values())),
        "moments": all_finite(best.get("moments") or []),
        "start": "start" not in best or is_start(best["start"]),  # earlier versions have none
    }
    sound |= {key: type(best.get(key, 0)) is int for key in ("round", "rollbacks")}  # nor these
    wrong += [key for key, so in sound.items() if not so and key not in wrong]
    if wrong:
        raise HsiviError(
            f"{where}the best evaluation has no usable {', '.join(wrong)}: copy it again"
        )


def is_start(start: object) -> bool:
    """Whether a value from a JSON file tells what a training began with: its distance, and its
    recall, which may be null.
    """
    if not isinstance(start, dict) or "recall" not in start:
        return False
    recall = start["recall"]
    return is_finite(start.get("distance")) and (recall is None or is_finite(recall))


def is_part(number: object) -> bool:
    """Whether a value from a JSON file is a number above 0 and up to 1."""
    return is_finite(number) and 0 < number <= 1


def write_info(folder: Path, info: dict) -> None:
    """hsivi.json: what a run is and how it was made."""
    write_text(folder / "hsivi.json", json.dumps({"format": FORMAT} | info, indent=1) + "\n")
