"""What a run's folder holds of a table's model: boost.json and trees/, read and checked in one
place.
"""

from __future__ import annotations

import typing
from dataclasses import fields
from pathlib import Path

import numpy as np

from ..config import BoostConfig
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


def read_info(out: Path) -> dict:
    """boost.json of a run's folder. Refuses other versions' and damaged ones."""
    info = read_json(out / "boost.json")
    wrong = [key for key, kind in FIELDS.items() if not isinstance(info.get(key), kind)]
    if wrong or not are_settings(info["config"]):
        raise HsiviError(
            f"{out / 'boost.json'} describes no run of this version ({', '.join(wrong) or 'config'}"
            " is missing or damaged): copy it again, or learn it anew in another --out"
        )
    return info


def are_settings(stored: dict) -> bool:
    """Whether a file's values are ones that the options of BoostConfig may have."""
    kinds = typing.get_type_hints(BoostConfig)
    known = {item.name for item in fields(BoostConfig)}
    if not stored.keys() <= known:
        return False
    return all(isinstance(value, kinds[name]) for name, value in stored.items())


def digest_of(texts: dict[str, str]) -> str:
    """A hash of ensembles and their names: LightGBM itself crashes on damaged ones."""
    return digest(repr(sorted(texts.items())))


def columns_of(told: list) -> tuple[Column, ...]:
    """Columns as boost.json tells them. Raises KeyError and the like where it tells none."""
    return tuple(
        Column(str(one["name"]), None if one["words"] is None else tuple(map(str, one["words"])))
        for one in told
    )


def load(folder: str | Path) -> tuple[Model, tuple[Column, ...], tuple[Column, ...]]:
    """The model of a finished run's folder, and its columns of x and of y. Refuses one that has not
    learned all its layers, and trees that are not those that were written.
    """
    folder = Path(folder)
    if not (folder / "boost.json").is_file():
        raise HsiviError(f"{folder} is no run of hsivi boost: name the folder that --out made")
    info = read_info(folder)
    config = BoostConfig(**info["config"])
    if info["step"] < config.calls:
        raise HsiviError(
            f"{folder} has learned {info['step']} of {counted(config.calls, 'layer')}: type the "
            "line that began it again"
        )
    texts = read_trees_of(folder, info.get("trees"))
    try:
        inputs, targets = columns_of(info["inputs"]), columns_of(info["targets"])
        numbers = [np.array(info[key], float) for key in ("centre", "scale", "factor")]
        width = len(targets[0].words or targets)
        shapes = [one.shape for one in numbers]
        if shapes != [(width,), (width,), (width, width)] or not inputs:
            raise ValueError(f"{len(inputs)} inputs, {width} targets, numbers of {shapes}")
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise HsiviError(f"{folder / 'boost.json'} is damaged ({error}): copy it again") from error
    categories = tuple(i for i, column in enumerate(inputs) if column.words is not None)
    trees = Trees(config, len(inputs), categories)
    return Model(trees, len(targets[0].words or ()), *numbers, texts), inputs, targets


def read_trees_of(folder: Path, told: str | None) -> dict[str, str]:
    """The ensembles in trees/, by name. Refuses others than the hash `told` is of."""
    try:
        files = sorted((folder / "trees").glob("*.txt"))
        texts = {file.stem: file.read_text(encoding="utf-8") for file in files}
    except (OSError, ValueError) as error:
        raise HsiviError(f"{folder / 'trees'} cannot be read ({error}): copy it again") from error
    if digest_of(texts) != told:
        raise HsiviError(
            f"{folder / 'trees'} are not the trees that were written: copy the run again, or type "
            "the line that learned it again"
        )
    return texts
