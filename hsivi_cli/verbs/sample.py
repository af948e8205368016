"""`hsivi sample`: images by seed, to a folder of PNGs, an .npz file or a grid."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from tqdm import tqdm

from ..config import SEEDS, SampleConfig
from ..errors import HsiviError
from ..files.device import pick_device
from ..files.images import check_npz, has_picture, save_grid, save_npz, save_png, seeds_done
from ..files.places import check_file, check_place
from ..files.whole import read_json, write_text
from ..models.draw import Sampler, chain_digest, check_labels, draw, solver_sampler, student_sampler
from ..models.loading import load_teacher
from ..models.student import is_student, load_student

# what a folder of samples says of itself, so that it is completed and never mixed
MARK = "hsivi-samples.json"


def run(config: SampleConfig) -> None:
    """Draw what is asked for and is not there yet."""
    if config.out is None and config.grid is None:
        raise HsiviError(
            "nowhere to put the images: give --out FOLDER, --out FILE.npz or --grid FILE.png"
        )
    seeds = parse_seeds(config)
    labels = parse_labels(config.labels, len(seeds))
    one_file = bool(config.out) and config.out.lower().endswith(".npz")
    if one_file:
        check_file(config.out, config.source)
        check_npz(config.out, {"images"})
    else:
        check_place(config.out, folder=True)
    check_file(config.grid, config.out, config.source)
    batch_size = min(config.batch_size, len(seeds))  # the same for what is left of a folder
    state = PartialState(cpu=config.device == "cpu")
    device = state.device if state.num_processes > 1 else pick_device(config.device)
    sampler = open_sampler(config, device)
    check_labels(sampler, labels)
    folder = Path(config.out) if config.out and not one_file else None
    if not has_picture(sampler.shape[0]) and (folder or config.grid):
        raise HsiviError(
            f"images of {sampler.shape[0]} channels have no picture: give --out FILE.npz alone"
        )
    if state.num_processes > 1 and (folder is None or config.grid):
        raise HsiviError(
            "several processes write to a folder of PNGs: give --out FOLDER, and no --grid"
        )
    if folder is None or config.grid:
        if folder is not None:
            claim(folder, sampler, config)
        save_all(config, sampler, seeds, labels, folder, batch_size, device)
        return
    if state.is_main_process:
        claim(folder, sampler, config)
    state.wait_for_everyone()
    done = seeds_done(folder)
    state.wait_for_everyone()  # all have seen the same, before any draws more
    todo = [i for i, seed in enumerate(seeds) if seed not in done][
        state.process_index :: state.num_processes
    ]
    chosen = None if labels is None else [labels[i] for i in todo]
    todo = [seeds[i] for i in todo]
    with tqdm(total=len(todo), unit=" images", disable=None) as bar:
        for start, images in zip(
            range(0, len(todo), batch_size),
            draw(sampler, todo, batch_size, device, chosen),
            strict=True,
        ):
            save_png(images, todo[start : start + len(images)], folder)
            bar.update(len(images))
    there = (
        f", {len(seeds) - len(todo)} were there"
        if len(todo) < len(seeds) and state.num_processes == 1
        else ""
    )
    print(f"{folder}: {len(todo)} images drawn, {sampler.nfe} calls each{there}", file=sys.stderr)


def save_all(
    config: SampleConfig, sampler: Sampler, seeds, labels, folder: Path | None, batch_size, device
) -> None:
    """Draw everything into memory for an .npz file or a grid."""
    parts = []
    with tqdm(total=len(seeds), unit=" images", disable=None) as bar:
        for images in draw(sampler, seeds, batch_size, device, labels):
            parts.append(images)
            bar.update(len(images))
    images = torch.cat(parts)
    if folder is not None:
        save_png(images, seeds, folder)
    elif config.out:
        save_npz(images, Path(config.out))
    if config.grid:
        save_grid(images, Path(config.grid))
    where = " and ".join(filter(None, (config.out, config.grid)))
    print(f"{where}: {len(images)} images, {sampler.nfe} calls each", file=sys.stderr)


def open_sampler(config: SampleConfig, device: torch.device) -> Sampler:
    """The student of a run, or with --solver a teacher (a run counts as its own network's) under
    that solver.
    """
    if is_student(config.source) and config.solver is None:
        return student_sampler(load_student(config.source, device), config.nfe, config.dtype)
    teacher = load_teacher(config.source, device, config.revision, config.variant, config.subfolder)
    if config.solver is None:
        raise HsiviError(
            f"{config.source} is a teacher, not a trained student: choose how to draw, for "
            "example --solver unipc --nfe 20"
        )
    if config.nfe is None:
        raise HsiviError("--solver needs --nfe, the number of network calls")
    return solver_sampler(teacher, config.solver, config.nfe, dtype=config.dtype)


def claim(folder: Path, sampler: Sampler, config: SampleConfig) -> None:
    """Mark a folder as holding samples of this sampler. Refuses one that holds anything else."""
    mark = {
        "network": sampler.digest,
        "chain": chain_digest(sampler),
        "nfe": sampler.nfe,
        "solver": config.solver,
        "labels": config.labels,
        "dtype": config.dtype,
    }
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MARK).exists():
            raise HsiviError(
                f"{folder} exists and holds something else than samples of hsivi: choose another "
                "--out"
            )
        found = read_json(folder / MARK)
        if found != mark:
            differs = [key for key in mark if mark[key] != found.get(key)]
            raise HsiviError(
                f"{folder} holds samples of another kind ({', '.join(differs)} differs): choose "
                "another --out"
            )
    elif folder.exists() and not folder.is_dir():
        raise HsiviError(f"{folder} is a file: choose a folder, or a name that ends in .npz")
    else:
        write_text(folder / MARK, json.dumps(mark) + "\n")


def parse_seeds(config: SampleConfig) -> range:
    """--count N or --seeds A-B."""
    if config.seeds is not None and config.count is not None:
        raise HsiviError("--count and --seeds exclude one another: --seeds A-B says how many")
    if config.seeds is None:
        count = 64 if config.count is None else config.count
        return range(count)
    first, _, last = config.seeds.partition("-")
    last = last or first
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) < SEEDS):
        raise HsiviError(
            f"--seeds {config.seeds} must be A-B with A at most B and B below {SEEDS}, such as "
            "0-49999"
        )
    return range(int(first), int(last) + 1)


def parse_labels(text: str | None, count: int) -> list[int] | None:
    """--labels 3, or one an image: 0,1,2."""
    if text is None:
        return None
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words) or len(words) not in (1, count):
        raise HsiviError(f"--labels {text} must be one class, or {count} separated by commas")
    return [int(word) for word in words] * (count if len(words) == 1 else 1)
