"""What rows of a comparison say: who wins, where a student stands, what must be known beside."""

from __future__ import annotations

from .rows import best, comparable, error_of, noise, ordered, told_apart


def verdicts(rows: list[dict]) -> list[str]:
    """One sentence per number of calls that says who wins, and the excess left (d - d_T) / (d_S -
    d_T) where it can be told.
    """
    return [f"{calls(nfe)}: {verdict(rows, nfe)}." for nfe in budgets(rows)]


def budgets(rows: list[dict]) -> list[int]:
    """The numbers of calls that students and solvers are compared at."""
    return sorted({row["nfe"] for row in rows if row["kind"] in ("student", "solver")})


def summary(rows: list[dict]) -> list[str]:
    """What a reader of the table is told below it: who wins where something was measured now, what
    must be known, and at the end where the students that were measured stand.

    At a number of calls with one student alone, that is who wins.
    """
    now = [row for row in rows if row["how"] == "measured"]
    lines = []
    for nfe in budgets(now or rows):
        students = [
            row for row in comparable(rows) if (row["kind"], row["nfe"]) == ("student", nfe)
        ]
        if [row["how"] for row in students] != ["measured"]:
            lines.append(f"{calls(nfe)}: {verdict(rows, nfe)}.")
    lines += notes(rows)
    if len(now) < len(rows):
        lines.append("--json and --html tell the commands that made the recorded rows.")
    return [*lines, *standings(rows)]


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


def standings(rows: list[dict]) -> list[str]:
    """One sentence for each student that was measured now, at each of its numbers of calls: how
    near to the data it is beside the best solver of as many calls and its teacher.
    """
    like = comparable(rows)
    return [
        standing(row, like)
        for row in ordered(like)
        if row["kind"] == "student" and row["how"] == "measured"
    ]


def standing(row: dict, rows: list[dict]) -> str:
    solver, beside = best(rows, "solver", row["nfe"]), []
    teacher = best(rows, "teacher") if row.get("own_teacher", True) else None
    if solver:
        beside.append(f"{place(row, solver)} {solver['name']}, the best solver, at {value(solver)}")
    if teacher:
        own = f"its teacher's {teacher['nfe']} calls at {value(teacher)}"
        beside.append(f"{place(row, teacher)} {own}")
    where = ", ".join([value(row), ", and ".join(beside)]) if beside else value(row)
    left = excess([row], solver, teacher) if solver else ""
    return f"{row['name']} at {calls(row['nfe'])}: {where}{left}."


def place(row: dict, other: dict) -> str:
    """Where one row is beside another, in words that the other's name follows."""
    if not told_apart(row, other):
        return "not told apart from"
    nearer = row["distance"] < other["distance"]
    return "nearer to the data than" if nearer else "farther from the data than"


def calls(nfe: int) -> str:
    return f"{nfe} call{'s' * (nfe > 1)}"


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
            "The excess left is not told without the teacher's own line: add --teacher-calls 20."
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
    if any("excess left" in verdict for verdict in verdicts(rows)):
        lines.append(
            "Excess left: what of the best solver's distance above the teacher's many calls a "
            "student of equal calls still has: 1 is the solver's, 0 the teacher's, below 0 the "
            "student is nearer to the data than its teacher."
        )
    return lines


def commands(rows: list[dict]) -> list[str]:
    """What made the recorded rows, a day and command each."""
    made = {}
    for row in ordered(rows):
        if row["how"] == "recorded":
            name = row["name"] + (f", {row['nfe']} calls" if row["nfe"] else "")
            key = (row.get("date", "undated"), row.get("command", "command unknown"))
            made.setdefault(key, []).append(name)
    return [
        f"recorded {day}: {'; '.join(names)}\n    {command}"
        for (day, command), names in made.items()
    ]
