"""What comes with the package to be compared: its students, and rows that were measured before."""

from __future__ import annotations

from statistics import fmean

from ..config import parse_numbers
from ..errors import HsiviError
from ..files.places import shipped_students, weights_folder
from ..files.whole import read_json
from ..method.schedule import Clip
from ..models.draw import CLIPPED, Sampler, solver_sampler
from ..models.teacher import Teacher, difference


def shipped(nfe: str | None) -> tuple[str, ...]:
    """The students that come with the package, of the numbers of calls given."""
    there = {int(name): f"embedded:students/{name}" for name in shipped_students()}
    budgets = sorted(there) if nfe is None else parse_numbers(nfe, "--nfe")
    if missing := sorted(set(budgets) - set(there)):
        raise HsiviError(
            f"no student of {', '.join(map(str, missing))} calls is shipped, but of "
            f"{', '.join(map(str, sorted(there)))}: name a run of yours, or a teacher"
        )
    return tuple(there[budget] for budget in budgets)


def recorded(teacher: Teacher | None, budgets: list[int]) -> list[dict]:
    """Rows of weights/recorded.json, each with the command that made it: those of the budgets, the
    teacher's and the floor's. Refused where they are of another teacher.
    """
    known = read_json(weights_folder() / "recorded.json")
    if teacher is None or difference(known["teacher"], teacher.identity):
        raise HsiviError(
            "--recorded holds rows of the embedded teacher, which is not the one compared here: "
            "leave it out"
        )
    return [
        row | {"how": "recorded", "distance": fmean(row["distances"])}
        for row in known["rows"]
        if row["kind"] not in ("student", "solver") or row["nfe"] in budgets
    ]


def recorded_samplers(teacher: Teacher, budgets: list[int], dtype: str) -> list[Sampler]:
    """What the recorded rows of solvers and of the teacher were drawn by."""
    own, found = teacher.clip or Clip(), []
    for row in recorded(teacher, budgets):
        if row["kind"] in ("solver", "teacher"):
            name = row["name"].removesuffix(CLIPPED)
            clip = None if name == row["name"] else own
            found.append(solver_sampler(teacher, name, row["nfe"], row["kind"], dtype, clip))
    return found
