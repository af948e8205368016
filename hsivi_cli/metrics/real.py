"""The real images of an adversarial training: --data, as `fid` takes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from ..config import TrainConfig
from ..errors import HsiviError, counted
from ..files.digest import digest
from ..files.images import (
    image_files,
    kind_of_image,
    labelled_images,
    read_images,
    read_labels,
    read_npz,
    shape_of_image,
)
from ..files.places import embedded
from ..method.networks import RealImages
from ..models.teacher import Teacher
from .statistics import check_images, kind_of


def real_images(config: TrainConfig, teacher: Teacher) -> RealImages | None:
    """The images of --data, None without --adversarial. Those of a folder are read as they are
    needed, others held as uint8.

    Refuses images of another kind than the teacher's, fewer than a batch, and such without labels
    where the teacher has classes.
    """
    if not config.adversarial:
        return None
    count, read, labels, told = opened(config.data, config.data_root, teacher)
    if count < config.batch_size:
        raise HsiviError(
            f"--data {config.data}: {counted(count, 'image')}, and a batch takes "
            f"{config.batch_size}: give more images, or a smaller --batch-size"
        )
    if teacher.label_count is None:
        labels = None
    else:
        check_labels(config.data, labels, count, teacher)
    return RealImages(count, read, labels, config.flip, told)


def opened(
    source: str, data_root: str | None, teacher: Teacher
) -> tuple[int, Callable[[Tensor], Tensor], Tensor | None, str]:
    """How many images there are, what reads those of some places [B] as uint8 [B, C, H, W], labels
    [N] where they are told, and a digest: of bytes that are held, of a folder's names and sizes.
    """
    labels, path, kind = None, embedded(source), kind_of(source)
    if kind == "statistics":
        raise HsiviError(f"--data {source} holds statistics: give the images themselves")
    check_images(source)
    match kind:
        case "data set":
            images, labels = labelled_images(source, data_root or "data")
        case "npz":
            images, labels = read_npz(path), read_labels(path)
        case "folder":
            files = image_files(path)
            for file in files:
                check_shape(file, shape_of_image(file), teacher)
            named = (f"{file.name} {file.stat().st_size}\n" for file in files)
            return len(files), lambda place: from_files(files, place), None, digest(*named)
    check_shape(source, images.shape[1:], teacher)
    known = digest(images, *([] if labels is None else [labels]))
    return len(images), lambda place: images[place].permute(0, 3, 1, 2), labels, known


def check_same(out: Path, config: TrainConfig, info: dict, images: RealImages | None) -> None:
    """Refuse to go on, in the run's folder of this info, with other images than it began with."""
    if images and info.get("data") != images.digest:
        raise HsiviError(
            f"{out} was begun with other images than those of --data {config.data}: name the same "
            "to resume, or choose another --out"
        )


def from_files(files: Sequence, place: Tensor) -> Tensor:
    return read_images([files[i] for i in place.tolist()]).permute(0, 3, 1, 2)


def check_shape(source: object, shape: Sequence[int], teacher: Teacher) -> None:
    """Refuse images of another kind than a teacher's."""
    if tuple(shape) != teacher.image:
        raise HsiviError(
            f"--data {source}: {kind_of_image(shape)}, but {teacher.name} draws "
            f"{kind_of_image(teacher.image)}: images are not resized here; make them so first"
        )


def check_labels(source: str, labels: Tensor | None, count: int, teacher: Teacher) -> None:
    """Refuse images that do not tell their classes to a teacher that has some."""
    classes = teacher.label_count
    if labels is None:
        raise HsiviError(
            f"--data {source} has no labels, and {teacher.name} draws {classes} classes: give an "
            ".npz with 'images' and 'labels' [N], or a data set"
        )
    if len(labels) != count:
        raise HsiviError(f"--data {source}: {len(labels)} labels for {counted(count, 'image')}")
    if labels.min() < 0 or labels.max() >= classes:
        raise HsiviError(
            f"--data {source}: labels from {labels.min()} to {labels.max()}, but {teacher.name} "
            f"has the classes 0 to {classes - 1}"
        )
