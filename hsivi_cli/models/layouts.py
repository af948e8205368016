"""Where a teacher's network and schedule lie in a folder: pipelines of now and of before, bare
networks, checkpoints of diffusers' training example, the hub's cache.
"""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import NamedTuple

import diffusers

from ..errors import HsiviError
from ..files.whole import is_fresh, read_json

INDEX, NETWORK, SCHEDULE = "model_index.json", "config.json", "scheduler_config.json"
PIPELINES = ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline", "HSIVIPipeline")
AVERAGED = "unet_ema"  # beside unet in a checkpoint of diffusers' training example
CACHE = "models--"  # what folders of the hub's cache begin with


class Parts(NamedTuple):
    """unet      the folder of the network's config.json and weights
    scheduler  the scheduler_config.json
    """

    unet: Path
    scheduler: Path


def find_parts(folder: Path, name: str, subfolder: str | None = None) -> Parts:
    """The parts of a teacher in a folder. Refuses a folder that is no teacher, or several, with
    what was found and what to type.

    name, subfolder  how the user calls it
    """
    if pipeline := (folder / INDEX).exists():
        check_index(read_json(folder / INDEX), name)
    at_root = (folder / NETWORK).exists()  # a bare network, or an older pipeline's
    has_unet, has_averaged = ((folder / part).is_dir() for part in ("unet", AVERAGED))
    within = f"{subfolder}/" if subfolder else ""
    part = ""
    if pipeline:
        part = "unet" if has_unet or not at_root else ""
    elif not at_root and has_unet and has_averaged:
        raise HsiviError(
            f"{name} holds two networks: give --subfolder {within}{AVERAGED} for the averaged "
            f"weights, or --subfolder {within}unet for the others"
        )
    elif not at_root and (has_unet or has_averaged):
        part = "unet" if has_unet else AVERAGED
    elif not at_root and (last := last_checkpoint(folder)):
        raise HsiviError(
            f"{name} is no diffusers teacher, but holds checkpoints: give --subfolder "
            f"{within}{last}"
        )
    unet = folder / part
    if folder.is_dir() and is_fresh(folder):
        raise HsiviError(
            f"{name} is an empty folder: a training leaves one that stopped before anything was "
            "kept; type its line again, or name another folder"
        )
    if not (unet / NETWORK).exists():
        raise HsiviError(f"{name} is no diffusers teacher: {unet / NETWORK} is missing")
    places = schedule_places(folder.absolute())
    file = next((file for file in places if Path(file).exists()), None)
    if file is None:
        raise HsiviError(
            f"{name} is no diffusers teacher: {places[0]} is missing. Write the one that it was "
            'trained with, such as python -c "from diffusers import DDPMScheduler; '
            f"DDPMScheduler(beta_schedule='linear').save_pretrained('{folder / 'scheduler'}')\""
        )
    return Parts(unet, Path(file))


def schedule_places(folder: PurePath) -> list[PurePath]:
    """Where the schedule of a teacher in a folder may lie, likely ones first: within, and of a
    pipeline's part or a training's checkpoint beside it.
    """
    folders = [folder]
    if folder.name in ("unet", AVERAGED):
        folders.append(folder.parent)
    if folders[-1].name.startswith("checkpoint-"):
        folders.append(folders[-1].parent)
    beside = [part / "scheduler" / SCHEDULE for part in folders]
    return [beside[0], folder / SCHEDULE, *beside[1:]]


def last_checkpoint(folder: Path) -> str | None:
    """The name of the last of the checkpoints of diffusers' training example in a folder."""
    found = {
        int(number): path.name
        for path in folder.glob("checkpoint-*")
        if (number := path.name.removeprefix("checkpoint-")).isdecimal() and path.is_dir()
    }
    return found[max(found)] if found else None


def leads_to_teacher(folder: Path) -> bool:
    """Whether a teacher lies further down: in the hub's cache, or in a training's checkpoints."""
    return is_cache(folder) or last_checkpoint(folder) is not None


def check_index(index: dict, name: str) -> None:
    """Refuse a pipeline that is not a UNet2DModel and a scheduler alone. A class that diffusers has
    not is a user's own, and known by its parts.
    """
    kind = index.get("_class_name")
    if isinstance(kind, list) and kind:  # of a pipeline with code of its own: [file, class]
        kind = kind[-1]
    parts = {key for key, value in index.items() if is_part(value)}
    others = sorted(parts - {"unet", "scheduler", "_class_name"})
    own = isinstance(kind, str) and kind not in dir(diffusers)
    if others or not (own or kind in PIPELINES):
        having = f" with {', '.join(others)}" if others else ""
        raise HsiviError(
            f"{name} is a {kind}{having}; a teacher is a pixel-space {PIPELINES[0]} or "
            f"{PIPELINES[1]}"
        )
    unet = index.get("unet")
    if isinstance(unet, list) and len(unet) == 2:
        unet = unet[1] if unet[0] == "diffusers" else ".".join(map(str, unet))
    if unet != "UNet2DModel":
        raise HsiviError(
            f"{name} has a {unet} as its unet; only UNet2DModel teachers can be distilled"
        )


def is_part(value) -> bool:
    """Whether an entry of a model_index.json is a part, [library, class]."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)


def is_cache(folder: Path) -> bool:
    """Whether a folder is the hub's cache of one repository."""
    return folder.name.startswith(CACHE) and (folder / "snapshots").is_dir()


def snapshot_of(folder: Path, revision: str | None = None) -> Path:
    """Of a folder of the hub's cache, the snapshot of a revision; any other folder is itself."""
    snapshots = folder / "snapshots"
    if not is_cache(folder):
        return folder
    ref = folder / "refs" / (revision or "main")
    wanted = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision or ""
    found = sorted(p.name for p in snapshots.iterdir() if p.name.startswith(wanted))
    if len(found) != 1:
        there = ", ".join(sorted(p.name for p in snapshots.iterdir())) or "none"
        raise HsiviError(
            f"{folder} is the hub's cache, and which of its revisions is not clear: give "
            f"--revision, one of {there}"
        )
    return snapshots / found[0]
