"""`hsivi sample`: images by seed, to a folder of PNGs, an .npz file or a grid."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config import COUNTS, ORIGIN, SEEDS, SampleConfig, TrainConfig, flag_of, is_whole
from ..errors import HsiviError, counted
from ..files.device import drawing, enough_memory, once, smaller_batch
from ..files.folder import holding
from ..files.images import (
    MARK,
    has_picture,
    load_png,
    save_grid,
    save_npz,
    seeds_done,
)
from ..files.outputs import IMAGES, PICTURE, check_output
from ..files.places import check_place, name_of, shipped_students
from ..files.pngs import saving
from ..files.progress import Bar, say
from ..files.whole import create_text, is_fresh, is_same, read_json, sweep, write_text
from ..method.schedule import Clip
from ..metrics.own import start_judge
from ..models.description import is_student
from ..models.draw import (
    Sampler,
    batch_that_fits,
    chain_digest,
    check_labels,
    draw,
    solver_sampler,
    student_sampler,
)
from ..models.loading import load_teacher, refuse_origin
from ..models.spacings import parse_solver, solver_names
from ..models.starts import FINALISTS, choose_starts
from ..models.student import load_student
from ..models.teacher import Teacher

SHIPPED = 4  # calls of the student that is drawn where nothing is said
FIRST = 64  # images of a grid that was not asked for


def run(config: SampleConfig) -> None:
    """Draw what is asked for and is not there yet."""
    seeds = parse_seeds(config)
    labels = parse_labels(config.labels, len(seeds))
    state, device = drawing(config.device)
    check_places(config)
    sampler, name = open_sampler(config, device)
    check_labels(sampler, labels)
    alone = state.num_processes == 1
    places = places_of(config, name)
    check_kinds(places, sampler, alone)
    holder = state.is_main_process and places.folder
    with holding(places.folder, shared=True) if holder else contextlib.nullcontext():
        if holder:
            by_seed = labels and dict(zip(seeds, labels, strict=True))
            claim(places.folder, sampler, config.dtype, by_seed)
        state.wait_for_everyone()
        done = seeds_done(places.folder) if places.folder else set()
        state.wait_for_everyone()  # all have seen the same, before any draws more
        todo = [i for i, seed in enumerate(seeds) if seed not in done]
        todo = todo[state.process_index :: state.num_processes]
        mine = [seeds[i] for i in todo]
        size = config.batch_size or once(state)(lambda: batch_that_fits(sampler, device))
        size = min(size, len(seeds))  # the same for what is left of a folder
        with enough_memory(f"drawing {size} images at once", smaller_batch(size)):
            batches = draw(sampler, mine, size, device, labels and [labels[i] for i in todo])
            kept = keep(batches, mine, size, places.folder)
    if places.archive:
        save_npz(torch.cat(kept), places.archive)
    if places.grid:
        shown = seeds[: places.shown]
        images = load_png(shown, places.folder) if places.folder else torch.cat(kept)
        save_grid(images, places.grid)
    there = f", {len(seeds) - len(mine)} were there" if done and alone else ""
    drawn = counted(len(mine), "image")
    say(f"{places}: {drawn} drawn, {counted(sampler.nfe, 'call')} each{there}")


def keep(
    batches: Iterator[Tensor], seeds: list[int], size: int, folder: Path | None
) -> list[Tensor]:
    """Write the images of these seeds, `size` at a time, to a folder as they come; where there is
    none, return them.
    """
    kept = []
    writer = saving(folder) if folder else contextlib.nullcontext()
    with Bar(total=len(seeds), unit="images") as bar, writer as save:
        for start, images in zip(range(0, len(seeds), size), batches, strict=True):
            if folder:
                save(images, seeds[start : start + size])
            else:
                kept.append(images)
            bar.update(len(images))
    return kept


@dataclass(frozen=True)
class Places:
    """Where images go: a folder of PNGs or an archive, and a grid of the first `shown`, or of
    all.
    """

    folder: Path | None = None
    archive: Path | None = None
    grid: Path | None = None
    shown: int | None = None

    def __str__(self) -> str:
        return " and ".join(str(place) for place in (self.folder, self.archive, self.grid) if place)


def check_places(config: SampleConfig) -> None:
    """Refuse places that cannot be written to, before a network is loaded."""
    if is_archive(config.out):
        check_output(config.out, IMAGES, [config.source], config.force)
    else:
        check_place(config.out, folder=True)
    check_output(config.grid, PICTURE, [config.out, config.source], config.force)


def places_of(config: SampleConfig, name: str) -> Places:
    """Where images go: what was said, else a folder and a grid of this name."""
    grid = Path(config.grid) if config.grid else None
    if is_archive(config.out):
        return Places(archive=Path(config.out), grid=grid)
    if config.out or config.grid:
        return Places(folder=Path(config.out) if config.out else None, grid=grid)
    folder, grid = Path("samples", name), Path("samples", f"{name}.png")
    check_place(folder, folder=True)
    check_output(grid, PICTURE, [config.source], config.force)
    return Places(folder=folder, grid=grid, shown=FIRST)


def check_kinds(places: Places, sampler: Sampler, alone: bool) -> None:
    """Refuse places that these images, or several processes, cannot be written to."""
    channels = sampler.shape[0]
    if not has_picture(channels) and (places.folder or places.grid):
        raise HsiviError(
            f"images of {channels} channels have no picture: give --out FILE.npz alone"
        )
    if not alone and (places.folder is None or places.grid):
        raise HsiviError(
            "several processes write to a folder of PNGs: give --out FOLDER, and no --grid"
        )


def is_archive(out: str | None) -> bool:
    return out is not None and out.lower().endswith(".npz")


def open_sampler(config: SampleConfig, device: torch.device) -> tuple[Sampler, str]:
    """The student of a run, or a teacher (a run with --solver counts as its own network's) under a
    solver; and what its images are called after.
    """
    source = config.source
    if source is None and config.solver is None:
        source = shipped(SHIPPED if config.nfe is None else config.nfe)
    name = name_of(source)
    if config.solver is None and source is not None and is_student(source):
        refuse_origin({name: getattr(config, name) for name in ORIGIN}, source)
        student = load_student(source, device)
        sampler = student_sampler(student, config.nfe, config.dtype)
        return sampler, f"{name}-{sampler.nfe}" if len(student.chains) > 1 else name
    if config.nfe is None:
        named = f"--solver {config.solver}"
        what = named if config.solver else f"{source} is no student: a teacher"
        raise HsiviError(f"{what} needs --nfe, the number of network calls")
    if config.solver is not None:
        parse_solver(config.solver)
    teacher = load_teacher(source, device, config.revision, config.variant, config.subfolder)
    solver = config.solver or best_solver(teacher, config.nfe)
    clips = {"auto": teacher.clip, "on": teacher.clip or Clip(), "off": None}
    clip = clips[config.clip_x0]
    sampler = solver_sampler(teacher, solver, config.nfe, dtype=config.dtype, clip=clip)
    return sampler, f"{name}-{solver}-{config.nfe}"


def shipped(nfe: int) -> str:
    """The student of so many calls that comes with hsivi."""
    there = shipped_students()
    if str(nfe) not in there:
        raise HsiviError(
            f"no student of {counted(nfe, 'call')} comes with hsivi, but of {', '.join(there)}: "
            f"take one of these, or train one by `hsivi train --nfe {nfe}`"
        )
    return f"embedded:students/{nfe}"


def best_solver(teacher: Teacher, nfe: int) -> str:
    """The solver that --start auto finds. Says which it is, and how to train a student."""
    calls = counted(nfe, "call")
    say(f"looking for the solver whose images at {calls} lie nearest to the teacher's own")
    search = TrainConfig(nfe=str(nfe), start="auto", noise_share="0")
    with Bar(total=1 + len(solver_names()) + FINALISTS, unit="solvers") as bar:
        judge = start_judge(teacher)
        found = choose_starts(search, teacher, judge, bar.update)[nfe]
    found = "ddim-auto" if found == "ddim" else found  # a start's name for ddim over that grid
    origin = [word for key, value in teacher.origin.items() for word in (flag_of(key), value)]
    train = shlex.join(["hsivi", "train", teacher.name, *origin, "--nfe", str(nfe)])
    say(f"drawing by --solver {found}; to train a student of {calls}: {train}")
    return found


def claim(folder: Path, sampler: Sampler, dtype: str, labels: dict[int, int] | None) -> None:
    """Mark a folder as holding samples of this sampler and these labels by seed. Refuses one that
    holds anything else, or images of other labels.
    """
    mark = {
        "network": sampler.digest,
        "chain": chain_digest(sampler),
        "nfe": sampler.nfe,
        "solver": sampler.name if sampler.kind == "solver" else None,
        "labels": None if labels is None else {str(seed): label for seed, label in labels.items()},
        "dtype": dtype,
    }
    file = folder / MARK
    if is_fresh(folder):
        create_text(file, json.dumps(mark) + "\n")
    if not file.exists():
        raise HsiviError(
            f"{folder} exists and holds something else than samples of hsivi: choose another --out"
        )
    found = read_json(file)
    old, new = found.get("labels"), mark["labels"]
    differs = [key for key in mark if key != "labels" and not is_same(mark[key], found.get(key))]
    differs += ["labels"] * (not isinstance(old, type(new)))
    if differs:
        raise HsiviError(
            f"{folder} holds samples of another kind ({', '.join(differs)} differs): choose "
            "another --out"
        )
    for seed in sorted(seeds_done(folder) & labels.keys()) if labels else ():
        if not is_same(old.get(str(seed)), labels[seed]):
            raise HsiviError(
                f"{folder} holds the image of seed {seed} with label {old.get(str(seed))}, not "
                f"{labels[seed]}: choose another --out"
            )
    if labels and not new.items() <= old.items():
        write_text(file, json.dumps(mark | {"labels": old | new}) + "\n")
    sweep(folder, shared=True)


def parse_seeds(config: SampleConfig) -> range:
    """--count N or --seeds A-B."""
    if config.seeds is not None and config.count is not None:
        raise HsiviError("--count and --seeds exclude one another: --seeds A-B says how many")
    if config.seeds is None:
        count = 64 if config.count is None else config.count
        return range(count)
    first, _, last = config.seeds.partition("-")
    last = last or first
    if not (
        is_whole(first, 0, SEEDS) and is_whole(last, int(first), min(int(first) + COUNTS, SEEDS))
    ):
        raise HsiviError(
            f"--seeds {config.seeds:.80} must be A-B with A at most B, both below {SEEDS}, and "
            f"fewer than {COUNTS} seeds, such as 0-49999"
        )
    return range(int(first), int(last) + 1)


def parse_labels(text: str | None, count: int) -> list[int] | None:
    """--labels 3, or one an image: 0,1,2."""
    if text is None:
        return None
    words = text.split(",")
    if not all(is_whole(word, 0, COUNTS) for word in words) or len(words) not in (1, count):
        raise HsiviError(f"--labels {text:.80} must be one class, or {count} separated by commas")
    return [int(word) for word in words] * (count if len(words) == 1 else 1)
