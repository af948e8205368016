"""What a run's folder holds of a table's model: boost.json and trees/, read and checked in one
place.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..config import BoostConfig, are_settings
from ..errors import HsiviError, counted
from ..files.digest import digest
from ..files.whole import read_json
from .layers import Model
from .table import Column
from .trees import Trees

FIELDS = {
    "table": str, "fingerprint": str, "inputs": list, "targets": list,
    "centre": list, "scale": list, "factor": list, "config": dict, "step": int,
}  # fmt: skip
DRAWN_BY = ("inputs", "targets", "centre", "scale", "factor", "config")


def read_info(out: Path) -> dict:
    """boost.json of a run's folder. Refuses other versions' and damaged ones."""
    info = read_json(out / "boost.json")
    wrong = [key for key, kind in FIELDS.items() if type(info.get(key)) is not kind]
    settings = info.get("config")
    if wrong or "calls" not in settings or not are_settings(settings, BoostConfig):
        raise HsiviError(
            f"{out / 'boost.json'} describes no run of this version ({', '.join(wrong) or 'config'}"
            " is missing or damaged): copy it again, or learn it anew in another --out"
        )
    return info


def digest_of(info: dict, texts: dict[str, str]) -> str:
    """A hash of all that is drawn by: what boost.json tells of it, and the ensembles by name.
    LightGBM itself crashes on damaged ones.
    """
    told = {key: info[key] for key in DRAWN_BY}
    return digest(json.dumps([told, texts], sort_keys=True))


def columns_of(told: list[dict]) -> tuple[Column, ...]:
    return tuple(
        Column(one["name"], None if one["words"] is None else tuple(one["words"])) for one in told
    )


def load(folder: str | Path) -> tuple[Model, tuple[Column, ...], tuple[Column, ...]]:
    """The model of a finished run's folder, and its columns of x and of y. Refuses one that has not
    learned all its layers, and one that is not as it was written.
    """
    folder = Path(folder)
    if not (folder / "boost.json").is_file():
        raise HsiviError(f"{folder} is no run of hsivi boost: name the folder that --out made")
    info = read_info(folder)
    if info["step"] < info["config"]["calls"]:
        raise HsiviError(
            f"{folder} has learned {info['step']} of "
            f"{counted(info['config']['calls'], 'layer')}: type the line that began it again"
        )
    texts = read_texts(folder / "trees")
    if digest_of(info, texts) != info.get("digest"):
        raise HsiviError(
            f"{folder} is not as it was written: boost.json or trees/ were changed. Copy it again, "
            "or type the line that learned it again"
        )
    inputs, targets = columns_of(info["inputs"]), columns_of(info["targets"])
    categories = tuple(i for i, column in enumerate(inputs) if column.words is not None)
    numbers = (np.array(info[key]) for key in ("centre", "scale", "factor"))
    trees = Trees(BoostConfig(**info["config"]), len(inputs), categories)
    return Model(trees, len(targets[0].words or ()), *numbers, texts), inputs, targets


def read_texts(folder: Path) -> dict[str, str]:
    """The ensembles in a folder, by name."""
    try:
        files = sorted(folder.glob("*.txt"))
        return {file.stem: file.read_text(encoding="utf-8") for file in files}
    except (OSError, ValueError) as error:
        raise HsiviError(f"{folder} cannot be read ({error}): copy it again") from error
