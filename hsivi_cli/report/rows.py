"""Rows of a comparison as a table, sentences, plots and a page. docs/formats.md describes a row
and a training curve.
"""

from __future__ import annotations

from .text import columns

WORDS = {"student": "student", "solver": "solver", "teacher": "teacher", "floor": "real data"}
COLUMNS = (
    *("", "kind", "calls", "distance", "range", "precision", "recall", "images/s"),
    *("training min", "count", "how"),
)
WORDY = ("", "kind", "how")  # columns that hold no number


def cells(row: dict) -> list[str]:
    """A row in the table's columns."""
    distances = row.get("distances", ())
    return [
        row["name"],
        row["kind"],
        str(row["nfe"] or ""),
        "NaN" if row["distance"] is None else f"{row['distance']:.2f}",
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
    first, student, solver = mine[0], best(mine, "student"), best(mine, "solver")
    if len(mine) == 1:
        return f"{first['name']} {value(first)}, with nothing to compare it with"
    if student is None or solver is None:
        lone = "student" if student else "solver"
        other = "no solver" if student else "no student"
        return (
            f"{first['name']} is the best {lone}, {value(first)} against {value(mine[1])} of "
            f"{mine[1]['name']}; there is {other} to compare it with"
        )
    won, lost = (student, solver) if first is student else (solver, student)
    if f"{won['distance']:.2f}" == f"{lost['distance']:.2f}":
        sentence = (
            f"{student['name']} (student) and {solver['name']} (solver) tie, {value(student)} "
            f"against {value(solver)}"
        )
    else:
        sentence = (
            f"{won['name']} ({WORDS[won['kind']]}) wins, {value(won)} against {value(lost)} of "
            f"{lost['name']}"
        )
        if max(won.get("distances") or [0]) >= min(lost.get("distances") or [float("inf")]):
            sentence += ", but their ranges over the repeats overlap"
    return sentence + excess(mine, solver, best(rows, "teacher"))


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
    recorded = {}
    for row in ordered(rows):
        if row["how"] == "recorded":
            name = row["name"] + (f", {row['nfe']} calls" if row["nfe"] else "")
            made = (row.get("date", "undated"), row.get("command", "command unknown"))
            recorded.setdefault(made, []).append(name)
    for (day, command), names in recorded.items():
        lines.append(f"recorded {day}: {'; '.join(names)}\n    {command}")
    return lines
