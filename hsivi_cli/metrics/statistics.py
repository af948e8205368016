"""The statistics of a set of images, and of anything that has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from ..errors import HsiviError
from ..files.images import (
    DATASET_NAMES,
    SUFFIXES,
    dataset_images,
    image_files,
    is_image,
    key_of_images,
    kind_of_image,
    open_images,
    open_npz,
)
from ..files.outputs import STATISTICS, write_npz
from ..files.places import embedded
from .detectors import EMBEDDED, INCEPTION, Detector
from .frechet import Moments, MomentSum, merged

FAR = 1e100  # what no feature comes near, and whose square is a number still


@dataclass(frozen=True)
class Statistics:
    """What a distance is computed from.

    moments          of the features
    stamp            the detector's; None where a file does not say
    features [N, D]  float32, all or some of them, for KID and recall, on the detector's device or
                     from a file on the CPU; None where none are kept
    image            (H, W, C) of the images; None where a file does not say
    drawn_by         a digest of all that drew the images, where that is kept
    """

    moments: Moments
    stamp: str | None
    features: Tensor | None = None
    image: tuple[int, int, int] | None = None
    drawn_by: str | None = None


def moments_of(
    batches: Iterable[Tensor], detector: Detector, keep_features: bool = False
) -> tuple[Moments, Tensor | None]:
    """Moments of the features of uint8 image batches, and with keep_features the features [N, D]
    themselves, on the detector's device."""
    moments, kept = MomentSum(), []
    for images in batches:
        features = detector.features(images)
        moments.update(features)
        if keep_features:
            kept.append(features)
    if moments.count < 2:
        raise HsiviError(f"a distance needs at least 2 images on each side; found {moments.count}")
    return moments.result(), torch.cat(kept) if keep_features else None


def random_rows(features: Tensor, count: int, seed: int) -> Tensor:
    """`count` of the features [N, D], chosen and ordered by a seed."""
    rng = torch.Generator().manual_seed(seed)
    return features[torch.randperm(len(features), generator=rng)[:count]]


def save_statistics(path: Path, statistics: Statistics) -> None:
    """Write mu, sigma, count, stamp and, where known, image, drawn_by and features (float16) as
    .npz, atomically."""
    moments = statistics.moments
    arrays = {
        "mu": moments.mean.numpy(),
        "sigma": moments.cov.numpy(),
        "count": np.int64(moments.count),
        "stamp": np.str_(statistics.stamp or ""),
    }
    if statistics.image is not None:
        arrays["image"] = np.array(statistics.image)
    if statistics.drawn_by is not None:
        arrays["drawn_by"] = np.str_(statistics.drawn_by)
    if statistics.features is not None:
        arrays["features"] = statistics.features.cpu().numpy().astype(np.float16)
    write_npz(path, STATISTICS, arrays, small=True)


def load_statistics(path: Path) -> Statistics:
    """Read a statistics file: this project's, or a plain one with mu and sigma only (count 0,
    stamp and image unknown)."""
    with open_npz(path) as file:
        arrays = {key: file[key] for key in file.files}
    if not {"mu", "sigma"} <= arrays.keys():
        raise HsiviError(
            f"{path}: a statistics file holds mu and sigma; "
            f"found {', '.join(sorted(arrays)) or 'nothing'}"
        )
    for key, kinds in (("mu", "fiu"), ("sigma", "fiu"), ("features", "f"), ("count", "iuf")):
        if key in arrays and arrays[key].dtype.kind not in kinds:
            raise HsiviError(f"{path}: {key} must be numbers, not {arrays[key].dtype}")
    mean, cov = arrays["mu"], arrays["sigma"]
    count = arrays.get("count", np.zeros(()))
    if count.size != 1 or not 0 <= count.item() < np.inf:
        raise HsiviError(f"{path}: count must be one number from 0 up, not {count}")
    if mean.ndim != 1 or not mean.size or cov.shape != (len(mean), len(mean)):
        raise HsiviError(
            f"{path}: mu [D] and sigma [D, D] are wanted; found {mean.shape} and {cov.shape}"
        )
    features = arrays.get("features")
    if features is not None and (features.ndim != 2 or features.shape[1] != len(mean)):
        raise HsiviError(f"{path}: features must be [N, {len(mean)}]; found {features.shape}")
    image = arrays.get("image")
    told = image is None or (image.dtype.kind in "iu" and image.shape == (3,) and min(image) > 0)
    if not told:
        raise HsiviError(
            f"{path}: image must be a height, a width and a number of channels, not {image}"
        )
    if not all((abs(part) < FAR).all() for part in (mean, cov)):
        raise HsiviError(f"{path}: mu or sigma hold NaN or infinite values; make the file anew")
    var = np.diagonal(cov)
    slack = 1e-6 * abs(cov).max(initial=0)  # of what was rounded
    most = np.sqrt(np.outer(var.clip(0), var.clip(0))) + slack
    if (var < -slack).any() or (abs(cov) > most).any() or (abs(cov - cov.T) > slack).any():
        raise HsiviError(f"{path}: sigma is no covariance; make the file anew")
    moments = Moments(
        int(count.item()),
        torch.from_numpy(mean.astype(np.float64)),
        torch.from_numpy(cov.astype(np.float64)),
    )
    kept = None if features is None else torch.from_numpy(features.astype(np.float32))
    stamp = str(arrays.get("stamp", "")).strip() or None
    drawn_by = str(arrays.get("drawn_by", "")) or None
    return Statistics(
        moments, stamp, kept, None if image is None else tuple(image.tolist()), drawn_by
    )


def kind_of(source: str | Path) -> str:
    """What a distance is asked of: "data set", "statistics", "npz", "network", "folder" or "both".

    "network" is a directory of a run or of a pipeline, whose images have yet to be drawn; "both" is
    one that also holds images, and is not surely a network.
    """
    if is_data_set(source):
        return "data set"
    path = embedded(source)
    if path.is_file():
        if path.suffix.lower() in SUFFIXES:
            raise HsiviError(
                f"{source} is one picture, and a distance is between sets of images: give a folder "
                "of them, such as `hsivi sample --out FOLDER` writes, or an .npz file"
            )
        with open_npz(path) as file:
            return "statistics" if "mu" in file.files else "npz"
    if not path.is_dir():
        raise HsiviError(
            f"{source}: neither a file, nor a folder, nor one of {', '.join(DATASET_NAMES)}"
        )
    if any((path / mark).exists() for mark in ("model_index.json", "hsivi.json")):
        return "network"
    if not marks_of(path):
        return "folder"
    return "both" if any(is_image(file) for file in path.iterdir()) else "network"


def check_images(source: str | Path) -> None:
    """Refuse what holds no set of images, by its kind and names alone: before what it is for is
    fetched or drawn.
    """
    kind, path = kind_of(source), embedded(source)
    if kind == "network":
        raise HsiviError(
            f"{source} is a run or pipeline and holds no images: give a folder that `hsivi sample` "
            "wrote"
        )
    if kind == "both":
        raise HsiviError(
            f"{source} holds images and, as a network's folder does, {mark_words(source)}: which "
            "is meant is not clear; move either into a folder of its own"
        )
    if kind == "folder":
        image_files(path)
    if kind == "npz":
        with open_npz(path) as file:
            key_of_images(path, file)


def marks_of(folder: Path) -> list[str]:
    """What of a network's a folder holds, which a folder of images may hold by chance."""
    return [mark for mark in ("config.json", "unet") if (folder / mark).exists()]


def mark_words(source: str | Path) -> str:
    return " and ".join(marks_of(embedded(source)))


def is_data_set(source: str | Path) -> bool:
    """Whether a public data set is meant; something here of its name goes before it."""
    return str(source) in DATASET_NAMES and not Path(source).exists()


def name_of_detector(source: str | Path, stamp: str) -> str:
    """What `load_detector` calls the detector of a stamp."""
    names = {EMBEDDED: EMBEDDED, INCEPTION: "inception"}
    word = stamp.split()[0]
    if word not in names:
        raise HsiviError(f"{source}: made by the detector '{stamp}'; name its folder by --detector")
    return names[word]


def image_batches(
    source: str | Path, data_root: str | Path | None = None, batch_size: int = 256
) -> tuple[int, Iterator[Tensor]]:
    """Number and batches of the images of a folder, an .npz file or a data set."""
    if is_data_set(source):
        images = dataset_images(str(source), data_root or "data")
        return len(images), iter(images.split(batch_size))
    return open_images(embedded(source), batch_size)


def statistics_of(
    source: str | Path,
    detector: Detector,
    data_root: str | Path | None = None,
    batch_size: int = 256,
    keep_features: bool = False,
) -> Statistics:
    """Statistics of the images of a folder, an .npz file or a data set."""
    check_images(source)
    count, batches = image_batches(source, data_root, batch_size)
    return statistics_of_batches(batches, count, str(source), detector, keep_features)


def statistics_of_batches(
    batches: Iterable[Tensor], count: int, name: str, detector: Detector, keep_features: bool
) -> Statistics:
    """Statistics of `count` images in batches, with a bar that says how many it has seen."""

    shapes = set()  # one, as sets of images have one kind

    def counted() -> Iterator[Tensor]:
        # disable=None: quiet where stderr is no terminal
        with tqdm(total=count, unit=" images", desc=Path(name).name, disable=None) as bar:
            for images in batches:
                shapes.add(tuple(images.shape[1:]))
                yield images
                bar.update(len(images))

    moments, features = moments_of(counted(), detector, keep_features)
    return Statistics(moments, detector.stamp, features, shapes.pop())


def gathered(own: Statistics, count: int) -> Statistics:
    """The statistics of `count` images, dealt out to the processes, of every process's own."""
    features = None if own.features is None else own.features.cpu()
    parts = gather_object([(own.moments, features)])
    if features is not None:
        features = dealt_back([part for _, part in parts], count)
    return replace(own, moments=merged([moments for moments, _ in parts]), features=features)


def dealt_back(parts: Sequence[Tensor], count: int) -> Tensor:
    """What was dealt out to processes, of all of them: sample i lies with process i % len(parts).
    [N_i, ...] -> [count, ...], as many as there are where these are fewer.
    """
    whole = parts[0].new_empty(min(count, sum(map(len, parts))), *parts[0].shape[1:])
    for rank, part in enumerate(parts):
        places = range(rank, len(whole), len(parts))
        whole[rank :: len(parts)] = part[: len(places)]
    return whole


def check_detector(source: str | Path, statistics: Statistics, detector: Detector) -> None:
    """Refuse a statistics file of another detector than this one."""
    check_stamps((source, statistics.stamp), ("--detector", detector.stamp))
    if len(statistics.moments.mean) != detector.feature_dim:
        raise HsiviError(
            f"{source}: {len(statistics.moments.mean)} features, but the detector "
            f"'{detector.stamp}' has {detector.feature_dim}"
        )


def check_stamps(a: tuple[str | Path, str | None], b: tuple[str | Path, str | None]) -> None:
    """Refuse statistics of two detectors; a stamp that is None is not known and passes."""
    (name_a, stamp_a), (name_b, stamp_b) = a, b
    if stamp_a is not None and stamp_b is not None and stamp_a != stamp_b:
        raise HsiviError(
            f"{name_a} is of the detector '{stamp_a}', {name_b} of '{stamp_b}': "
            "such distances mean nothing; make both with one detector"
        )


def unsure_of(source: str | Path, statistics: Statistics) -> list[str]:
    """What to warn of before statistics are believed."""
    warnings = []
    if statistics.stamp is None:
        warnings.append(
            f"warning: {source} does not tell its detector; "
            "the distance means something only if both sides used the same"
        )
    few = few_images(source, statistics.moments.count, len(statistics.moments.mean))
    return warnings + ([few] if few else [])


def few_images(source: str | Path, count: int, width: int) -> str | None:
    """A warning where a covariance is singular; a count of 0 is not known and passes."""
    if not 0 < count <= width:
        return None
    return (
        f"warning: {source} has {count} images for {width} features: its covariance is "
        f"singular and the distance far too large; use many more than {width} images, or "
        "`hsivi fid --kid`"
    )


def unlike_images(
    source: str | Path, image: Sequence[int] | None, other: str | Path, drawn: Sequence[int] | None
) -> str | None:
    """A warning where two sides' images (H, W, C) are of different kinds; None is not known and
    passes.
    """
    if image is None or drawn is None or tuple(image) == tuple(drawn):
        return None
    return (
        f"warning: {source} has images of {kind_of_image(image)}, {other} of "
        f"{kind_of_image(drawn)}: the detector makes them alike, and the distance tells of that too"
    )
