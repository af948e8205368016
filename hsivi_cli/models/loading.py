"""Teachers from a folder or the hub: what diffusers wrote, checked."""

from __future__ import annotations

from pathlib import Path

import torch

from ..config import ORIGIN, flag_of
from ..errors import HsiviError
from ..files.places import embedded, embedded_names
from ..files.progress import say
from ..files.whole import read_json
from .hub import fetch, is_hub_id
from .layouts import find_parts, snapshot_of
from .schedules import clip_of, load_schedule, unlike_noise
from .teacher import Teacher, digest_of
from .unets import load_unet, shape_of


def load_teacher(
    source: str | None = None,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
) -> Teacher:
    """A teacher from a local diffusers directory, a hub id, or (None) the embedded one.

    The directory is a DDPM or DDIM pipeline, with or without its model_index.json, its parts in
    folders or at the root, or a bare UNet2DModel with its scheduler_config.json beside it or in
    scheduler/.
    Raises HsiviError for anything else, naming what was found; warns of a schedule that does not
    end in noise.
    """
    teacher = read_teacher(source, device, revision, variant, subfolder)
    if warning := unlike_noise(teacher.table, teacher.name):
        say(warning)
    return teacher


def read_teacher(
    source: str | None = None,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
) -> Teacher:
    """`load_teacher` without a warning: a student's own network begins where its chain does."""
    name = "embedded:teacher" if source is None else source
    folder = find_folder(name, revision, variant, subfolder)
    unet_folder, scheduler_file = find_parts(folder, name, subfolder)
    scheduler, table = load_schedule(scheduler_file, name)
    clip = clip_of(read_json(scheduler_file), scheduler_file)
    unet = load_unet(unet_folder, name, variant, len(table)).to(device)
    return Teacher(
        name=name,
        unet=unet,
        scheduler=scheduler,
        table=table,
        prediction=scheduler.config.prediction_type,
        shape=shape_of(unet),
        label_count=unet.config.num_class_embeds,
        digest=digest_of(unet),
        clip=clip,
        origin={k: v for k, v in zip(ORIGIN, (revision, variant, subfolder), strict=True) if v},
    )


def refuse_origin(origin: dict[str, str | None], source: str) -> None:
    """Refuse what tells of a teacher where the source is none."""
    if told := [flag_of(name) for name in ORIGIN if origin.get(name)]:
        verb = "tell" if len(told) > 1 else "tells"
        raise HsiviError(
            f"{' and '.join(told)} {verb} of a teacher, and {source} is none: leave it out"
        )


def find_folder(
    source: str, revision: str | None, variant: str | None, subfolder: str | None
) -> Path:
    """The local folder of a teacher: itself, or the hub's snapshot of the files that a teacher
    needs.
    """
    path = embedded(source)
    if path.is_dir():
        path = snapshot_of(path, revision)
    elif path.exists() or source.startswith((".", "/", "~")) or not is_hub_id(source):
        raise HsiviError(
            f"there is no teacher at {source}: give a diffusers directory, a hub id such as "
            f"google/ddpm-cifar10-32, or one of {', '.join(embedded_names())}"
        )
    else:
        path = fetch(source, revision, variant, subfolder)
    path = path / subfolder if subfolder else path
    if not path.is_dir():
        raise HsiviError(f"{source} has no subfolder {subfolder}")
    return path
