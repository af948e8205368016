"""`hsivi compare`: students, tuned solvers and the teacher on the same seeds and noises, judged by
one distance.

Every row is a Sampler (draw.py), so solver, student and teacher share the sampling code. What was
drawn is cached by content: weights, chain, seeds, detector; a second run draws only what is new.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from . import report
from .checkpoint import check_file, check_place, replacing, write_text
from .config import (
    ORIGIN,
    CompareConfig,
    HsiviError,
    command_line,
    embedded,
    parse_numbers,
    weights_folder,
)
from .detector import (
    Detector,
    Statistics,
    detector_for,
    few_images,
    load_statistics,
    moments_of,
    save_statistics,
    statistics_of,
    unsure_of,
)
from .device import pick_device
from .draw import Sampler, chain_digest, draw, solver_sampler, student_sampler
from .frechet import frechet_distance, precision_recall
from .images import NotFinite, has_picture, read_npz, save_grid, save_npz
from .runs import whole_lines
from .student import Student, is_student, load_student
from .teacher import (
    SOLVERS,
    Teacher,
    difference,
    load_teacher,
    parse_solver,
    read_json,
    solver_names,
)

RECALL_COUNT = 2000  # features a side for precision and recall: their cost grows with its square
GRID_COUNT = 36
FINALISTS = 3  # spacings that a family's first heat leaves
HEAT_SHARE = 8  # it is run on this part of --tune-count


def run(config: CompareConfig) -> None:
    """Measure what is asked for; print the table and who wins; write the files asked for."""
    files = [config.json, config.plot, config.html]
    for i, file in enumerate(files):
        check_file(file, *files[:i], *config.sources, config.reference, config.grids)
    for folder in (config.grids, cache_of(config)):
        check_place(folder, folder=True)
    device = pick_device(config.device)
    students, teacher = open_sources(config, device)
    budgets, solvers = parse_budgets(config, students), parse_solvers(config)
    many = [n for n in parse_numbers(config.teacher_calls, "--teacher-calls", least=0) if n]
    teachers = [
        solver_sampler(teacher, config.teacher_solver, calls, "teacher", config.dtype)
        for calls in (many if teacher else ())
    ]
    reference_path = (
        str(embedded(config.reference)) if config.reference else embedded_reference(teacher)
    )
    weights = Path(config.detector_weights) if config.detector_weights else None
    detector = detector_for([reference_path], config.detector, weights, device)
    reference = statistics_of(reference_path, detector, config.data_root, keep_features=True)
    ruler = Ruler(config, detector, reference, device)
    caution(config, reference_path, reference)

    samplers, curves = [], []
    for nfe in budgets:
        samplers += [student_sampler(s, nfe, config.dtype) for s in students if nfe in s.chains]
        found = [tuned(name, nfe, teacher, ruler) for name in solvers if teacher]
        samplers += [sampler for sampler in found if sampler]
        curves += [training_curve(s, nfe, detector) for s in students if nfe in s.chains]
    samplers += teachers
    rows = [ruler.measure(sampler) for sampler in samplers]
    for row in rows:
        row |= training_facts(row, students, teacher)
    if config.recorded:
        rows += recorded_rows(teacher, {(row["name"], row["nfe"]) for row in rows})
    if not rows:
        raise HsiviError(
            "nothing to compare: name runs, numbers of calls they were trained for, or solvers"
        )
    print(report.table(rows))
    print()
    print("\n".join([*report.verdicts(rows), *report.notes(rows)]))
    curves = [curve for curve in curves if curve["points"]]
    write_files(config, rows, curves, samplers, ruler, reference_path)


def caution(config: CompareConfig, path: str, reference: Statistics) -> None:
    """Warn of too few images, and of a reference whose detector is not known."""
    width, drawn = len(reference.moments.mean), f"--count {config.count}"
    warnings = [few_images(drawn, config.count, width), *unsure_of(path, reference)]
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
    size = ruler.reference.moments.count or "unknown number of"
    about = {
        "date": date.today().isoformat(),
        "reference": f"{Path(reference).name} ({size} images)",
        "detector": ruler.detector.stamp,
        "images per row": f"{config.count}, seeds from {config.seed}, {config.repeats} time(s)",
        "command": command_line(),
        "solvers": f"each at its spacing best on {config.tune_count} images; linear, so x0 is "
        "never clipped",
    }
    if config.json:
        found = {"rows": rows, "training": curves, "about": about}
        write_text(Path(config.json), json.dumps(found, indent=1, allow_nan=False) + "\n")
    if config.plot:
        with replacing(Path(config.plot)) as temporary:
            temporary.write_bytes(report.plot_png(rows, curves))
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
            write_text(Path(config.html), report.page(rows, grids, about, curves))


# ---- what is compared ----------------------------------------------------------------------------


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
    return str(weights_folder() / "reference.npz")


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


def parse_solvers(config: CompareConfig) -> list[str]:
    names = [] if config.solvers == "none" else config.solvers.split(",")
    for name in names:
        parse_solver(name)
    return names


def tuned(name: str, nfe: int, teacher: Teacher, ruler: Ruler) -> Sampler | None:
    """A solver on the teacher: the one named, or a family's best spacing. None, with a warning,
    where nothing fits this many calls.

    Many spacings run a first heat on few images, and only the finalists run the full distance.
    """
    config = ruler.config
    candidates, reason = {}, None
    for spaced in solver_names((name,)) if name in SOLVERS else (name,):
        try:
            sampler = solver_sampler(teacher, spaced, nfe, dtype=config.dtype)
            candidates.setdefault(chain_digest(sampler), sampler)  # equal ones are drawn once
        except HsiviError as error:  # a spacing that does not fit this many calls
            reason = reason or error
    if not candidates:
        print(f"warning: {name} is left out at {nfe} calls: {reason}", file=sys.stderr)
        return None

    def by_distance(count: int) -> list[Sampler]:
        return sorted(left, key=lambda sampler: ruler.distance_or_inf(sampler, count))

    left, count = list(candidates.values()), min(config.tune_count, config.count)
    heat = count // HEAT_SHARE
    if len(left) > FINALISTS and heat > ruler.detector.feature_dim:
        left = by_distance(heat)[:FINALISTS]
    return by_distance(count)[0] if len(left) > 1 else left[0]


def recorded_rows(teacher: Teacher | None, have: set[tuple[str, int]]) -> list[dict]:
    """Rows of weights/recorded.json, each with the command that made it, if they are of this
    teacher.
    """
    file = weights_folder() / "recorded.json"
    known = read_json(file)
    if teacher is None or difference(known["teacher"], teacher.identity):
        raise HsiviError(
            "--recorded holds rows of the embedded teacher, which is not the one compared here: "
            "leave it out"
        )
    return [
        row | {"how": "recorded"} for row in known["rows"] if (row["name"], row["nfe"]) not in have
    ]


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
    logs = [folder / "timing.jsonl", folder / "evaluations.jsonl"]
    if all(log.exists() for log in logs):
        timing, evaluations = (map(json.loads, whole_lines(log.read_text())) for log in logs)
        seconds = {line["step"]: line["seconds"] for line in timing}
        for line in evaluations:
            mine = line.get("nfe", nfe) == nfe and line["detector"] == detector.stamp
            if mine and line["step"] in seconds:
                points.append([round(seconds[line["step"]] / 60, 2), line["distance"]])
                counts.add(line["count"])
    return {"name": student.name, "nfe": nfe, "points": points, "counts": sorted(counts)}


# ---- measuring -----------------------------------------------------------------------------------


def cache_of(config: CompareConfig) -> Path:
    """Where what was drawn is kept."""
    chosen = config.cache or os.environ.get("HSIVI_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "hsivi"


class Ruler:
    """Draws samplers and measures how far they are from the reference, remembering what was
    drawn.
    """

    def __init__(
        self, config: CompareConfig, detector: Detector, reference: Statistics, device: torch.device
    ):
        self.config, self.detector, self.reference, self.device = (
            config,
            detector,
            reference,
            device,
        )
        self.cache = cache_of(config)

    def measure(self, sampler: Sampler) -> dict:
        """A row: the mean over repeats, on seeds that do not overlap."""
        config, distances, seconds, shares, broken = self.config, [], [], [], {}
        for repeat in range(config.repeats):
            seed = config.seed + repeat * config.count
            try:
                distance, spent, statistics = self.distance(sampler, seed, config.count)
            except NotFinite as error:  # one sampler's fault; the others go on
                distances, seconds, shares, broken = [], [], [], {"error": str(error)}
                break
            distances.append(distance)
            seconds.append(spent)
            real, fake = self.reference.features, statistics.features
            size = 0 if real is None else min(len(real), len(fake), RECALL_COUNT)
            if size > 3:  # as many of both, or one manifold would be the finer
                pair = (features[:size].to(self.device) for features in (real, fake))
                shares.append(precision_recall(*pair))
        precision, recall = (
            (sum(part) / len(shares) for part in zip(*shares, strict=True))
            if shares
            else (None, None)
        )
        return {
            "name": sampler.name,
            "kind": sampler.kind,
            "nfe": sampler.nfe,
            "distance": sum(distances) / len(distances) if distances else None,
            "distances": distances,
            "precision": precision,
            "recall": recall,
            "count": config.count,
            "seconds": sum(seconds) / len(seconds) if seconds else None,
            "how": "measured",
        } | broken

    def distance(self, sampler: Sampler, seed: int, count: int) -> tuple[float, float, Statistics]:
        """The distance of images of seeds seed.. to the reference, the seconds that drawing took,
        and the images' statistics.
        """
        statistics, seconds = self.statistics(sampler, seed, count)
        return frechet_distance(statistics.moments, self.reference.moments), seconds, statistics

    def distance_or_inf(self, sampler: Sampler, count: int) -> float:
        """The distance of the first `count` images, infinite where they hold NaN."""
        try:
            return self.distance(sampler, self.config.seed, count)[0]
        except NotFinite:
            return float("inf")

    def file(self, sampler: Sampler, seed: int, count: int) -> Path:
        """Where the cache keeps a draw, without suffix: a name made of all that decides it."""
        key = {
            "network": sampler.digest,
            "chain": chain_digest(sampler),
            "seeds": [seed, count],
            "dtype": self.config.dtype,
            "batch_size": self.config.batch_size,
            "detector": self.detector.stamp,
        }
        return (
            self.cache / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        )

    def statistics(self, sampler: Sampler, seed: int, count: int) -> tuple[Statistics, float]:
        """The statistics of images of seeds seed.. and the seconds that drawing took, from the
        cache or drawn; then the first images are kept too.
        """
        file = self.file(sampler, seed, count)
        kept, note, grid = (file.with_suffix(end) for end in (".npz", ".json", ".first.npz"))
        if kept.exists() and note.exists():
            with contextlib.suppress(HsiviError, KeyError):  # damaged: draw again
                return load_statistics(kept), read_json(note)["seconds"]
        clock, first = Clock(), []

        def looked_at(batches: Iterator[Tensor]) -> Iterator[Tensor]:
            for images in batches:
                first.extend(images[: GRID_COUNT - len(first)])
                yield images

        with tqdm(
            total=count,
            unit=" images",
            desc=f"{sampler.name}, {sampler.nfe} calls",
            disable=None,
            leave=False,
        ) as bar:
            seeds, size = range(seed, seed + count), min(count, self.config.batch_size)
            batches = clock.time(draw(sampler, seeds, size, self.device), bar)
            moments, features = moments_of(looked_at(batches), self.detector, keep_features=True)
        save_statistics(kept, Statistics(moments, self.detector.stamp, features[:RECALL_COUNT]))
        save_npz(torch.stack(first), grid)
        facts = {"name": sampler.name, "nfe": sampler.nfe, "seconds": clock.seconds}
        write_text(note, json.dumps(facts) + "\n")
        return load_statistics(kept), clock.seconds  # features rounded, as a later run reads them

    def first_images(self, sampler: Sampler) -> Tensor:
        """The first of the images that a row was measured on."""
        seed, count = self.config.seed, self.config.count
        grid = self.file(sampler, seed, count).with_suffix(".first.npz")
        with contextlib.suppress(HsiviError):
            return read_npz(grid)
        seeds = range(seed, seed + min(count, GRID_COUNT))  # the cache has lost them
        return torch.cat(list(draw(sampler, seeds, len(seeds), self.device)))


class Clock:
    """Seconds spent inside an iterator."""

    seconds = 0.0

    def time(self, batches, bar):
        while True:
            begin = time.perf_counter()
            images = next(batches, None)
            self.seconds += time.perf_counter() - begin
            if images is None:
                return
            bar.update(len(images))
            yield images
