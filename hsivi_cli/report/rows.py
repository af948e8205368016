"""Rows of a comparison in a table, and which of them can be compared. docs/formats.md describes a
row.
"""

from __future__ import annotations

import math
from statistics import stdev

from .text import columns

COLUMNS = (
    *("", "kind", "calls", "distance", "±", "range", "precision", "recall", "images/s"),
    *("training min", "count", "how"),
)
WORDY = ("", "kind", "how")  # columns that hold no number


def cells(row: dict) -> list[str]:
    """A row in the table's columns."""
    distances, error = row.get("distances", ()), error_of(row)
    seconds = row.get("seconds") if row["how"] == "measured" else None  # else on another machine
    return [
        row["name"],
        row["kind"],
        str(row["nfe"] or ""),
        "NaN" if row["distance"] is None else f"{row['distance']:.2f}",
        "" if error is None else f"{error:.2f}",
        f"{min(distances):.2f}-{max(distances):.2f}" if len(distances) > 1 else "",
        *("" if row.get(key) is None else f"{row[key]:.2f}" for key in ("precision", "recall")),
        f"{row['count'] / seconds:.0f}" if seconds else "",
        "" if row.get("minutes") is None else f"{row['minutes']:.1f}",
        f"{row['count']:,}",
        f"{row['how']} {row.get('date', '')}".strip(),
    ]


def filled(rows: list[dict]) -> list[list[str]]:
    """The head and the rows' cells, by calls and then by distance, without columns that stay
    empty.
    """
    lines = [cells(row) for row in ordered(rows)]
    used = [i for i in range(len(COLUMNS)) if i == 0 or any(line[i] for line in lines)]
    return [[line[i] for i in used] for line in ([*COLUMNS], *lines)]


def table(rows: list[dict]) -> str:
    lines = filled(rows)
    return columns(lines, left=[i for i, head in enumerate(lines[0]) if head in WORDY])


def ordered(rows: list[dict]) -> list[dict]:
    rank = {"floor": 0, "teacher": 1, "student": 2, "solver": 2}
    return sorted(rows, key=lambda row: (rank[row["kind"]], row["nfe"] or 0, distance_of(row)))


def distance_of(row: dict) -> float:
    """A row's distance, infinite where its sampler drew NaN."""
    return float("inf") if row["distance"] is None else row["distance"]


def best(rows: list[dict], kind: str, nfe: int | None = None) -> dict | None:
    """The row of a kind (and number of calls) with the smallest distance."""
    found = [
        row
        for row in rows
        if row["kind"] == kind and nfe in (None, row["nfe"]) and row["distance"] is not None
    ]
    return min(found, key=distance_of, default=None)


def comparable(rows: list[dict]) -> list[dict]:
    """The rows with a distance of as many images as the measured ones, and the floor: a distance
    falls as the number of images grows.
    """
    counts = [row["count"] for row in rows if row["kind"] != "floor"]
    counts = [row["count"] for row in rows if row["how"] == "measured"] or counts
    return [
        row
        for row in rows
        if row["distance"] is not None and (row["kind"] == "floor" or row["count"] in counts[:1])
    ]


def error_of(row: dict) -> float | None:
    """One standard error of a row's distance over sets of as many images; None where a row of one
    set does not tell it.
    """
    distances = row.get("distances", ())
    if row.get("standard_error") is None and len(distances) > 1:
        return stdev(distances) / math.sqrt(len(distances))
    return row.get("standard_error")


def noise(a: dict, b: dict) -> float | None:
    """The difference up to which two rows are not told apart: two standard errors of it. Where one
    row's is not known it is taken for the other's; None where neither is.
    """
    errors = [error for error in map(error_of, (a, b)) if error is not None]
    return 2 * math.hypot(errors[0], errors[-1]) if errors else None


def told_apart(a: dict, b: dict) -> bool:
    """Whether two distances differ by more than their noise, or, if that is unknown, in print."""
    limit = noise(a, b)
    if limit is None:
        return f"{a['distance']:.2f}" != f"{b['distance']:.2f}"
    return abs(a["distance"] - b["distance"]) > limit
