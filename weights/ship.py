"""Ship a run's student, or record rows of a comparison, beside the embedded teacher.

python weights/ship.py student runs/x ...
    weights/students/K: the run's student, weights in float16
python weights/ship.py rows a.json b.json ...
    weights/recorded.json: rows of `hsivi compare --json` beside those it has, each with its
    command and date
python weights/ship.py stamp
    write the teacher's identity anew into the students' hsivi.json and into recorded.json; no
    tensor changes, and files of other weights are refused
python weights/ship.py table
    the recorded rows as tables, between the marks in README.md and docs/results.md
"""

import argparse
import json
from pathlib import Path

import torch

from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.student import load_student, save_student
from hsivi_cli.models.teacher import difference
from hsivi_cli.report.rows import best, filled

WEIGHTS = Path(__file__).parent
BEGIN, END = "<!-- python weights/ship.py table -->\n", "<!-- end of the table -->"


def ship_student(run: str) -> None:
    student = load_student(run)
    info = student.info | {"teacher": student.info["teacher"] | {"name": "embedded:teacher"}}
    folder = WEIGHTS / "students" / "-".join(map(str, student.chains))
    folder.mkdir(parents=True, exist_ok=True)
    unet = student.model.unet.to(torch.float16)
    unet.register_to_config(_name_or_path=f"embedded:students/{folder.name}")  # not the run's
    card = (
        (Path(run) / "README.md").read_text().replace(str(run), f"embedded:students/{folder.name}")
    )
    save_student(
        folder,
        unet,
        student.model.clipping_scheduler(),
        student.chains,
        student.log_scales,
        info,
        card,
    )


def stamp() -> None:
    identity = load_teacher().identity
    for file in [*WEIGHTS.glob("students/*/hsivi.json"), WEIGHTS / "recorded.json"]:
        found = json.loads(file.read_text())
        if other := difference(found["teacher"], identity):
            raise SystemExit(f"{file} is of another teacher, with {other}")
        found["teacher"] = identity
        file.write_text(json.dumps(found, indent=1) + "\n")


def record_rows(files: list[str]) -> None:
    """Later files win over earlier ones and over what is recorded, row by row."""
    record = WEIGHTS / "recorded.json"
    old = json.loads(record.read_text())["rows"] if record.exists() else []
    rows = {(row["name"], row["nfe"]): row for row in old}
    for file in files:
        found = json.loads(Path(file).read_text())
        for row in found["rows"]:
            if row["how"] == "measured":
                kept = row | {
                    "how": "recorded",
                    "command": row.get("command", found["about"]["command"]),
                    "date": row.get("date", found["about"]["date"]),
                }
                rows[row["name"], row["nfe"]] = kept
    recorded = {"teacher": load_teacher().identity, "rows": list(rows.values())}
    record.write_text(json.dumps(recorded, indent=1) + "\n")


def short_table(rows: list[dict]) -> list[list[str]]:
    """Students beside the best solver of each budget, recall in brackets."""
    found = [["network calls", "student", "best solver", "minutes of training"]]
    for nfe in sorted({row["nfe"] for row in rows if row["kind"] == "student"}):
        student, solver = best(rows, "student", nfe), best(rows, "solver", nfe)
        found.append([str(nfe), distance(student), distance(solver), minutes(student)])
    return found


def distance(row: dict | None) -> str:
    return f"{row['distance']:.2f} ({row['recall']:.2f})" if row else "-"


def minutes(row: dict) -> str:
    return f"{row['minutes']:.0f}" if "minutes" in row else "-"


def with_table(text: str, table: list[list[str]]) -> str:
    """A page with a table, its head first, between the marks."""
    head, _, rest = text.partition(BEGIN)
    lines = [table[0], ["---"] * len(table[0]), *table[1:]]
    shown = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return head + BEGIN + shown + END + rest.partition(END)[2]


def pages() -> dict[Path, str]:
    """The pages that hold a table, as the recorded rows make them."""
    rows = json.loads((WEIGHTS / "recorded.json").read_text())["rows"]
    best_solvers = [best(rows, "solver", row["nfe"]) for row in rows]
    shown = [row for row in rows if row["kind"] != "solver" or row in best_solvers]
    untimed = [row | {"seconds": None} for row in shown]  # of machines that did other work
    tables = {"README.md": short_table(rows), "docs/results.md": filled(untimed)}
    files = {WEIGHTS.parent / name: table for name, table in tables.items()}
    return {file: with_table(file.read_text(), table) for file, table in files.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("student", "rows", "stamp", "table"))
    parser.add_argument("files", nargs="*")
    args = parser.parse_args()
    if args.what == "student":
        for run in args.files:
            ship_student(run)
    elif args.what == "rows":
        record_rows(args.files)
    elif args.what == "table":
        for file, text in pages().items():
            file.write_text(text)
    else:
        stamp()
