"""`hsivi compare`: students, tuned solvers and the teacher on the same seeds and noises, judged by
one distance.

Every row is a Sampler (draw.py), so solver, student and teacher share the sampling code. What was
drawn is cached by content: weights, chain, seeds, detector; a second run draws only what is new.
"""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch

from ..config import ORIGIN, CompareConfig, parse_numbers
from ..errors import HsiviError
from ..files.device import drawing
from ..files.images import has_picture, save_grid
from ..files.logs import rows_of
from ..files.outputs import COMPARISON, PAGE, PICTURE, check_output
from ..files.places import check_place, embedded
from ..files.progress import command_line
from ..files.whole import is_finite, is_same, write_bytes, write_json, write_text
from ..metrics.detectors import Detector
from ..metrics.judge import check_named, open_judge
from ..metrics.recorded import recorded, recorded_samplers, shipped
from ..metrics.ruler import Ruler, cache_of
from ..metrics.statistics import few_images, unlike_images, unsure_of
from ..metrics.tuning import clips_of, tuned
from ..models.description import is_student
from ..models.draw import Sampler, solver_sampler, student_sampler
from ..models.loading import load_teacher, refuse_origin
from ..models.spacings import SOLVERS, parse_solver
from ..models.student import Student, load_student
from ..models.teacher import Teacher, difference
from ..report import page as pages
from ..report import plots
from ..report.rows import table
from ..report.sentences import summary


def run(config: CompareConfig) -> None:
    """Measure what is asked for; print the table and who wins; write the files asked for. Of
    several processes that draw together one speaks.
    """
    check_places(config)
    check_names(config)
    state, device = drawing(config.device)
    aside = contextlib.redirect_stderr(io.StringIO())
    with contextlib.nullcontext() if state.is_main_process else aside:
        measured = measure(config, device)
    if not state.is_main_process:
        return
    rows, curves, *drawn = measured
    print(table(rows))
    print()
    print("\n".join(summary(rows)))
    write_files(config, rows, [curve for curve in curves if curve["points"]], *drawn)


def measure(
    config: CompareConfig, device: torch.device
) -> tuple[list[dict], list[dict], list[Sampler], Ruler, str]:
    """Rows, runs' training curves, what was drawn and by which ruler, and the reference's name."""
    bare = not config.sources
    if bare:
        config = replace(config, sources=shipped(config.nfe), recorded=True)
    students, teacher = open_sources(config, device)
    budgets, solvers = parse_budgets(config, students), parse_solvers(config.solvers)
    teachers = [
        solver_sampler(teacher, name, calls, "teacher", config.dtype, clip)
        for calls in (parse_calls(config) if teacher else ())
        for name in parse_solvers(config.teacher_solver)
        for clip in clips_of(teacher, config)
    ]
    reference = config.reference or embedded_reference(teacher)
    judge = open_judge(config, reference, device, keep_features=True)
    ruler = Ruler(config, judge, device)
    tunes = bool(not bare and teacher and set(solvers) & set(SOLVERS))
    drawn = {student.name: student.model.image for student in students}
    drawn |= {teacher.name: teacher.image} if teacher else {}
    caution(ruler, reference, drawn, tunes)

    samplers, curves = [], []
    for nfe in budgets:
        samplers += [student_sampler(s, nfe, config.dtype) for s in students if nfe in s.chains]
        found = [tuned(name, nfe, teacher, ruler) for name in solvers if teacher and not bare]
        samplers += [sampler for sampler in found if sampler]
        curves += [training_curve(s, nfe, judge.detector) for s in students if nfe in s.chains]
    samplers += teachers
    if bare:
        samplers += recorded_samplers(teacher, budgets, config.dtype)
        samplers = [sampler for sampler in samplers if not ruler.is_slow(sampler)]
    rows = [ruler.measure(sampler) for sampler in samplers]
    for row in rows:
        row |= training_facts(row, students, teacher)
    if config.recorded:
        have = {(row["name"], row["nfe"]) for row in rows}
        rows += [r for r in recorded(teacher, budgets) if (r["name"], r["nfe"]) not in have]
    shown = {row["name"] for row in rows}
    for name in (s.name for s in students if s.name not in shown):  # slow, and never recorded
        print(f"{name} is not measured yet: hsivi compare {name} does it", file=sys.stderr)
    if not rows:
        raise HsiviError(
            "nothing to compare: name runs, numbers of calls they were trained for, or solvers"
        )
    return rows, curves, samplers, ruler, reference


def check_places(config: CompareConfig) -> None:
    """Refuse places that cannot be written to, or that hold what is to stay."""
    read = [*config.sources, config.reference, config.detector, config.detector_weights]
    read += [config.data_root, cache_of(config)]
    named = [config.grids]
    for file, kind in ((config.json, COMPARISON), (config.plot, PICTURE), (config.html, PAGE)):
        check_output(file, kind, [*read, *named], config.force)
        named.append(file)
    for folder in (config.grids, cache_of(config)):
        check_place(folder, folder=True)
    for file in Path(config.grids).glob("*.png") if config.grids else ():
        check_output(file, PICTURE, read, config.force)


def check_names(config: CompareConfig) -> None:
    """Refuse numbers, solvers, a reference and a detector that there are not, before a network is
    loaded.
    """
    if config.nfe is not None:
        parse_numbers(config.nfe, "--nfe")
    parse_calls(config)
    parse_solvers(config.solvers)
    parse_solvers(config.teacher_solver)
    check_named(config, config.reference)


def caution(ruler: Ruler, path: str, drawn: dict[str, tuple], tunes: bool) -> None:
    """Warn of too few images, and of a reference whose detector is not known, or whose images are
    of another kind than what is drawn.

    drawn  by what draws, (H, W, C) of its images
    tunes  whether solvers' spacings are to be chosen
    """
    config, reference, width = ruler.config, ruler.judge.reference, ruler.judge.detector.feature_dim
    warnings = [few_images(f"--count {config.count}", config.count, width)]
    warnings += unsure_of(path, reference)
    unlike = (unlike_images(path, reference.image, *one) for one in drawn.items())
    warnings.append(next(filter(None, unlike), None))
    if tunes and ruler.tune_count <= width and not ruler.tunes_by_kernel:
        warnings.append(
            f"warning: --tune-count {ruler.tune_count} images for {width} features: their "
            "covariances are singular, and spacings chosen by them may not be the best; give more, "
            "or a reference that keeps features"
        )
    for line in filter(None, warnings):
        print(line, file=sys.stderr)


def write_files(
    config: CompareConfig,
    rows: list[dict],
    curves: list[dict],
    samplers: list[Sampler],
    ruler: Ruler,
    reference: str,
) -> None:
    size = ruler.judge.reference.moments.count or "unknown number of"
    about = {
        "date": date.today().isoformat(),
        "reference": f"{Path(reference).name} ({size} images)",
        "detector": ruler.judge.detector.stamp,
        "images per row": f"{config.count}, seeds from {config.seed}, {config.repeats} time(s)",
        "command": command_line(),
    }
    if any(row["kind"] == "solver" and row["how"] == "measured" for row in rows):
        kind = "kernel" if ruler.tunes_by_kernel else "Fréchet"
        about["solvers"] = (
            f"each at its spacing best by the {kind} distance on {ruler.tune_count} images; "
            "x0 clipped or not, as is better"
        )
    if config.json:
        found = {"rows": rows, "training": curves, "about": about}
        write_json(Path(config.json), found)
    if config.plot:
        write_bytes(Path(config.plot), plots.plot_png(rows, curves))
    if config.grids or config.html:
        sound = {(row["name"], row["nfe"]) for row in rows if row["distance"] is not None}
        grids = {
            f"{s.name}, {s.nfe} calls": ruler.first_images(s)
            for s in samplers
            if (s.name, s.nfe) in sound and has_picture(s.shape[0])
        }
        for title, images in grids.items() if config.grids else ():
            save_grid(
                images,
                Path(config.grids)
                / (title.replace("/", "_").replace(", ", "-").replace(" ", "-") + ".png"),
            )
        if config.html:
            write_text(Path(config.html), pages.page(rows, grids, about, curves))


def open_sources(
    config: CompareConfig, device: torch.device
) -> tuple[list[Student], Teacher | None]:
    """The students named, and the one teacher that they and the solvers share.

    Students of different teachers are compared with one another through the reference alone; then
    there are no solvers.
    """
    students = [load_student(path, device) for path in config.sources if is_student(path)]
    origin = {key: getattr(config, key) for key in ORIGIN}
    teachers = [
        load_teacher(path, device, **origin) for path in config.sources if not is_student(path)
    ]
    if not teachers:
        refuse_origin(origin, " and ".join(config.sources))
    for other in teachers[1:]:
        if unlike := difference(other.identity, teachers[0].identity):
            raise HsiviError(
                f"one teacher at a time, or solvers would not share their weights: {unlike}"
            )
    told = [student.info["teacher"] for student in students]
    alike = not any(difference(one, told[0]) for one in told)
    if not teachers and alike:
        teachers = find_teacher(students[0], device)
    if not alike or (told and teachers and difference(told[0], teachers[0].identity)):
        names = ", ".join(f"{s.name} (of {s.info['teacher']['name']})" for s in students)
        least = "" if teachers else "; no solver is drawn: name the teacher to have them"
        print(
            f"warning: students of different teachers: {names}. They are compared through the "
            f"reference alone{least}",
            file=sys.stderr,
        )
    return students, teachers[0] if teachers else None


def find_teacher(student: Student, device: torch.device) -> list[Teacher]:
    """A student's own teacher, if it is still where it was and has the same weights."""
    told = student.info["teacher"]
    origin = {key: told.get(key) for key in ORIGIN}
    for source in ({"source": told["name"]} | origin, {}):
        try:
            teacher = load_teacher(**source, device=device)
        except HsiviError:
            continue
        if not difference(told, teacher.identity):
            return [teacher]
    print(
        f"warning: the teacher of {student.name} ({told['name']}) is not here: no solvers; name "
        "it to have them",
        file=sys.stderr,
    )
    return []


def embedded_reference(teacher: Teacher | None) -> str:
    if teacher is None or difference(teacher.identity, load_teacher().identity):
        raise HsiviError(
            "--reference is needed: only the embedded teacher and its students have one of their "
            "own"
        )
    return "embedded:reference.npz"


def parse_budgets(config: CompareConfig, students: list[Student]) -> list[int]:
    has = sorted({nfe for student in students for nfe in student.chains})
    if config.nfe is None and not has:
        raise HsiviError("--nfe is needed where no student says how many calls it takes")
    budgets = has if config.nfe is None else parse_numbers(config.nfe, "--nfe")
    for student in students:
        if not set(budgets) & set(student.chains):
            student.budget(budgets[0])  # says which it has
    if config.nfe is not None and (missing := sorted(set(budgets) - set(has))) and students:
        print(
            f"warning: no student was trained for {', '.join(map(str, missing))} calls; they were "
            f"for {', '.join(map(str, has))}",
            file=sys.stderr,
        )
    return budgets


def parse_calls(config: CompareConfig) -> list[int]:
    """The numbers of calls of the teacher's own images."""
    return [n for n in parse_numbers(config.teacher_calls, "--teacher-calls", least=0) if n]


def parse_solvers(text: str) -> list[str]:
    """The solvers of --solvers or --teacher-solver."""
    names = [] if text == "none" else text.split(",")
    for name in names:
        parse_solver(name)
    return names


def training_facts(row: dict, students: list[Student], teacher: Teacher | None) -> dict:
    """What a student's row also says: minutes of training, and whether the comparison's teacher is
    its own.
    """
    for student in students:
        if row["kind"] == "student" and row["name"] == student.name:
            own = teacher and not difference(student.info["teacher"], teacher.identity)
            return {"minutes": round(student.info["seconds"] / 60, 1), "own_teacher": bool(own)}
    return {}


def training_curve(student: Student, nfe: int, detector: Detector) -> dict:
    """Distances that a run measured in training by this detector: points of (minutes, distance)."""
    folder, points, counts = embedded(student.name), [], set()
    timing = rows_of(folder / "timing.jsonl", "seconds")
    seconds = {row["step"]: row["seconds"] for row in timing if is_finite(row["seconds"])}
    for row in rows_of(folder / "evaluations.jsonl", "detector", "distance", "count"):
        mine = is_same(row.get("nfe", nfe), nfe) and row["detector"] == detector.stamp
        sound = is_finite(row["distance"]) and type(row["count"]) is int
        if mine and sound and row["step"] in seconds:
            points.append([round(seconds[row["step"]] / 60, 2), row["distance"]])
            counts.add(row["count"])
    return {"name": student.name, "nfe": nfe, "points": points, "counts": sorted(counts)}
