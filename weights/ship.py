"""Ship a run's student, or record rows of a comparison, beside the embedded teacher.

python weights/ship.py student runs/x ...
    weights/students/K: the run's student, weights in float16
python weights/ship.py rows a.json b.json ...
    weights/recorded.json: rows of `hsivi compare --json` beside those it has, each with its
    command and date
python weights/ship.py stamp
    write the teacher's identity anew into the students' hsivi.json and into recorded.json; no
    tensor changes, and files of other weights are refused
"""

import argparse
import json
from pathlib import Path

import torch

from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.student import load_student, save_student
from hsivi_cli.models.teacher import difference

WEIGHTS = Path(__file__).parent


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
        folder, unet, student.model.scheduler, student.chains, student.log_scales, info, card
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("student", "rows", "stamp"))
    parser.add_argument("files", nargs="*")
    args = parser.parse_args()
    if args.what == "student":
        for run in args.files:
            ship_student(run)
    elif args.what == "rows":
        record_rows(args.files)
    else:
        stamp()
