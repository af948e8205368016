"""What the benches share: settings as key=value words, rows as lines of JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import fields

NUMBERS = {  # fields whose default, None, does not tell their type
    "grid_top": int,
    "sines": int,
    "trees": int,
    "match": int,
    "checkpoint_every": int,
    "rate": float,
    "a": float,
    "mixing": int,
    "student_rate": float,
}


def settings(words: list[str], cls) -> dict:
    """key=value words as fields of a dataclass, of their default's type; others are left."""
    own = [f for f in fields(cls) if not f.metadata.get("run_only")]
    kinds = {f.name: type(f.default) for f in own} | NUMBERS
    pairs = (word.partition("=")[::2] for word in words)
    return {key: kinds[key](value) for key, value in pairs if key in kinds}


def refuse_unknown(parser: argparse.ArgumentParser, words: list[str], *found: dict) -> None:
    """Stop at a word that no dataclass has taken."""
    for word in words:
        if not any(word.partition("=")[0] in chosen for chosen in found):
            parser.error(f"{word}: no setting has this name")


def append_rows(path: str | None, rows: Iterable[dict]) -> None:
    """One JSON line a row, at the end of a file where there is one to write to."""
    if path:
        with open(path, "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
