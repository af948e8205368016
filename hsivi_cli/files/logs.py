"""Logs: a JSON object a line, each with the step that it tells of."""

from __future__ import annotations

import json
from pathlib import Path

from .whole import check_kind, write_text, writing


def append(path: Path, row: dict) -> None:
    """A line at the end of a log."""
    with writing(path.parent), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def rows_of(path: Path, *keys: str) -> list[dict]:
    """The rows of a log that have a step and these keys, none where there is no such file. A line
    that a full disk or a power cut broke off, or that was damaged since, is left out.
    """
    if not path.exists():
        return []
    check_kind(path)
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        whole = isinstance(row, dict) and row.keys() >= {"step", *keys} and "\ufffd" not in line
        if whole and type(row["step"]) is int:
            rows.append(row)
    return rows


def trim(path: Path, done: int, key: str = "step") -> None:
    """Drop a log's lines of later steps, or rounds, than a checkpoint's."""
    if path.exists():
        kept = [r for r in rows_of(path) if type(r.get(key, 0)) is int and r.get(key, 0) <= done]
        write_text(path, "".join(f"{json.dumps(row)}\n" for row in kept))
