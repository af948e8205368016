"""Rows of a comparison as a table, sentences, plots and a page. docs/formats.md describes a row
and a training curve.
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
    return [
        row["name"],
        row["kind"],
        str(row["nfe"] or ""),
        "NaN" if row["distance"] is None else f"{row['distance']:.2f}",
        "" if error is None else f"{error:.2f}",
        f"{min(distances):.2f}-{max(distances):.2f}" if len(distances) > 1 else "",
        *("" if row.get(key) is None else f"{row[key]:.2f}" for key in ("precision", "recall")),
        f"{row['count'] / row['seconds']:.0f}" if row.get("seconds") else "",
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


def verdicts(rows: list[dict]) -> list[str]:
    """One sentence per number of calls that says who wins, and the excess left (d - d_T) / (d_S -
    d_T) where it can be told.
    """
    budgets = sorted({row["nfe"] for row in rows if row["kind"] in ("student", "solver")})
    return [f"{nfe} call{'s' if nfe > 1 else ''}: {verdict(rows, nfe)}." for nfe in budgets]


def verdict(rows: list[dict], nfe: int) -> str:
    rows = comparable(rows)
    mine = [r for r in ordered(rows) if r["nfe"] == nfe and r["kind"] in ("student", "solver")]
    if not mine:
        return "nothing to compare was drawn"
    student, solver = best(mine, "student"), best(mine, "solver")
    if len(mine) == 1:
        return f"{mine[0]['name']} {value(mine[0])}, with nothing to compare it with"
    if student is None or solver is None:
        first, second = mine[:2]
        other = "no solver" if student else "no student"
        if not told_apart(first, second):
            return f"{alike(first, second)}; there is {other} to compare them with"
        return (
            f"{first['name']} is the best {first['kind']}, {value(first)} against {value(second)} "
            f"of {second['name']}; there is {other} to compare it with"
        )
    won, lost = (student, solver) if mine[0] is student else (solver, student)
    sentence = (
        f"{won['name']} ({won['kind']}) wins, {value(won)} against {value(lost)} of {lost['name']}"
        if told_apart(won, lost)
        else alike(student, solver)
    )
    return sentence + excess(mine, solver, best(rows, "teacher"))


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


def alike(a: dict, b: dict) -> str:
    """Two rows that are not told apart, in words."""
    limit = noise(a, b)
    names = " and ".join(f"{row['name']} ({row['kind']})" for row in (a, b))
    reason = "" if limit is None else f": differences up to {limit:.2f} are noise"
    return f"{names} are not told apart, {value(a)} against {value(b)}{reason}"


def value(row: dict) -> str:
    """A row's distance, with the recall that it may have paid with."""
    recall = "" if row.get("recall") is None else f" (recall {row['recall']:.2f})"
    return f"{row['distance']:.2f}{recall}"


def excess(rows: list[dict], solver: dict, teacher: dict | None) -> str:
    """The end of a sentence: the excess left of this teacher's students among rows of equal
    calls.
    """
    students = [r for r in rows if r["kind"] == "student" and r.get("own_teacher", True)]
    if teacher is None or not students:
        return ""
    line = f"the teacher's {teacher['distance']:.2f} at {teacher['nfe']} calls"
    span = solver["distance"] - teacher["distance"]
    if span <= 0:
        return f"; no excess is told, as {solver['name']} itself is not above {line}"
    words = [f"{(row['distance'] - teacher['distance']) / span:.3f}" for row in students]
    if len(students) > 1:
        words = [f"{w} ({row['name']})" for w, row in zip(words, students, strict=True)]
    return f"; excess left {', '.join(words)} over {line}"


def notes(rows: list[dict]) -> list[str]:
    """What a reader of the table must know beside it, a line each."""
    lines = [
        f"{row['name']}, {row['nfe']} calls: {row['error']}." for row in rows if row.get("error")
    ]
    like = comparable(rows)
    kinds = {row["kind"] for row in like}
    if {"student", "solver"} <= kinds and "teacher" not in kinds:
        lines.append(
            "The excess left is not told without the teacher's own line: add --teacher-calls 200."
        )
    if unlike := sum(row["distance"] is not None for row in rows) - len(like):
        lines.append(
            f"{unlike} rows are of another number of images and left out of sentences and plots: "
            "a distance falls as that number grows."
        )
    errors = [error_of(row) for row in like if row["kind"] != "floor"]
    if any(error is not None for error in errors):
        lines.append(
            "±: one standard error over sets of as many images (another training differs by more); "
            "rows are told apart where they differ by more than twice that of their difference."
        )
    if None in errors:
        lines.append("Rows with no ± are of one set of images, whose noise is not known.")
    recorded = {}
    for row in ordered(rows):
        if row["how"] == "recorded":
            name = row["name"] + (f", {row['nfe']} calls" if row["nfe"] else "")
            made = (row.get("date", "undated"), row.get("command", "command unknown"))
            recorded.setdefault(made, []).append(name)
    for (day, command), names in recorded.items():
        lines.append(f"recorded {day}: {'; '.join(names)}\n    {command}")
    return lines
