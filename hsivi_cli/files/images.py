"""Image files, and nothing else, on one side; uint8 NHWC tensors on the other.

`images` are uint8 [N, H, W, C] on the CPU; those with C = 1 (grey) or 3 (RGB) have pictures, others
.npz files alone. PNGs that this project
writes are named by seed: 00000.png, 00001.png, ... Every file is written under a temporary name
and then moved, so that a file that exists is whole.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..errors import HsiviError
from .network import FORBIDDEN, is_offline
from .outputs import IMAGES, SOFTWARE, write_npz
from .whole import check_kind, write_bytes

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
NPZ_KEYS = ("images", "arr_0")
MODES = {"L": "L", "1": "L", "RGB": "RGB", "P": "RGB"}  # a file's mode: how it is read
DATASETS = {"cifar10": "CIFAR10", "fashion-mnist": "FashionMNIST", "mnist": "MNIST"}
DATASET_NAMES = tuple(f"{name}-{split}" for name in DATASETS for split in ("train", "test"))
# what zipfile and NumPy raise on damaged files; RuntimeError on methods and passwords they lack
NPZ_ERRORS = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
# what a folder of samples says of itself, so that it is completed and never mixed
MARK = "hsivi-samples.json"
MOST_BYTES = 2**28  # of a batch of images that are read
GAP = 2  # pixels between the images of a grid


def has_picture(channels: int) -> bool:
    """Whether images of so many channels can be shown."""
    return channels in (1, 3)


class NotFinite(HsiviError):
    """A sampler drew NaN or infinite values."""


def to_images(x: Tensor) -> Tensor:
    """Images for a sampler's output: clamped to [-1, 1], then rounded to the nearest of 256 levels.

    x [B, C, H, W] in [-1, 1] -> uint8 [B, H, W, C] on the CPU, as diffusers' pipelines convert
    """
    broken = (~torch.isfinite(x.flatten(1))).any(1).sum().item()
    if broken:
        raise NotFinite(
            f"{broken} of {len(x)} images hold NaN or infinite values; "
            "try --dtype float32, or an earlier checkpoint"
        )
    unit = (x.detach().float() / 2 + 0.5).clamp(0, 1)
    return (unit * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()


def from_images(images: Tensor) -> Tensor:
    """What images uint8 [B, H, W, C] stand for: float32 [B, C, H, W] in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def open_images(path: Path, batch_size: int = 256) -> tuple[int, Iterator[Tensor]]:
    """How many images a folder or an .npz file holds, and those images, uint8 [B, H, W, C] at a
    time, fewer where they are large.

    A folder is read in the order of its file names, one batch in memory at a time; files that are
    no images are passed over.
    """
    path = Path(path)
    if path.is_dir():
        files = image_files(path)
        return len(files), _read_files(files, batch_size)
    images = read_npz(path)
    return len(images), iter(images.split(batch_size))


def read_labels(path: Path) -> Tensor | None:
    """The "labels" [N] of an .npz file's images, long; None where it has none."""
    with open_npz(path) as file:
        labels = file["labels"] if "labels" in file.files else None
    if labels is None:
        return None
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise HsiviError(
            f"{path}: 'labels' must be whole numbers [N], not {labels.dtype} {list(labels.shape)}"
        )
    return torch.from_numpy(labels.astype(np.int64))


def read_npz(path: Path) -> Tensor:
    """The images of an .npz file, under "images" or "arr_0"; uint8 [N, H, W, C] (grey ones also
    [N, H, W])."""
    with open_npz(path) as file:
        key = key_of_images(path, file)
        array = file[key]
    if array.ndim == 3:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 4:
        raise HsiviError(
            f"{path}: '{key}' must be uint8 [N, H, W, C], not {array.dtype} {list(array.shape)}"
        )
    if len(array) == 0:
        raise HsiviError(f"{path}: '{key}' holds no image")
    return torch.from_numpy(array)


def key_of_images(path: Path, file: np.lib.npyio.NpzFile) -> str:
    """What the images of an .npz file are called in it. Refuses one without any."""
    key = next((key for key in NPZ_KEYS if key in file.files), None)
    if key is None:
        found = ", ".join(file.files) or "nothing"
        raise HsiviError(f"{path}: no images: 'images' or 'arr_0' is wanted, found {found}")
    return key


@contextmanager
def open_npz(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """An .npz file, whose arrays are read when they are asked for; never a pickle."""
    check_kind(path)
    try:
        with zipfile.ZipFile(path):  # np.load would take a lone array or a pickle too
            pass
        with np.load(path, allow_pickle=False) as file:
            yield file
    except NPZ_ERRORS as error:
        raise HsiviError(f"{path}: not a readable .npz file ({error})") from error


def is_image(file: Path) -> bool:
    """Whether a file is an image by its name; no pipe or folder is."""
    return file.suffix.lower() in SUFFIXES and file.name[0] != "." and file.is_file()


def image_files(folder: Path) -> list[Path]:
    """The images of a folder in the order of their names. Refuses one without any."""
    files = [file for file in folder.iterdir() if is_image(file)]
    if not files:
        raise HsiviError(f"{folder}: no image in this folder ({', '.join(sorted(SUFFIXES))})")
    return sorted(files)


def _read_files(files: Sequence[Path], batch_size: int) -> Iterator[Tensor]:
    """Images in batches of so many, or of fewer where they are large."""
    first = None
    for start in range(0, len(files), batch_size):
        part = files[start : start + batch_size]
        for file in part:  # their headers, before any takes memory
            shape = shape_of_image(file)
            first = first or shape
            if shape != first:
                raise HsiviError(
                    f"{file}: {kind_of_image(shape)}, but {files[0].name} is "
                    f"{kind_of_image(first)}; one folder holds images of one size and mode"
                )
        few = max(1, MOST_BYTES // math.prod(first))
        for begin in range(0, len(part), few):
            yield torch.from_numpy(np.stack([_read_file(f) for f in part[begin : begin + few]]))


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """An image file of a mode that is read, its pixels not yet."""
    check_kind(file)
    try:
        with Image.open(file) as image:
            if image.mode not in MODES:
                raise HsiviError(
                    f"{file}: mode {image.mode} is not read; convert it to RGB or grey (L)"
                )
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise HsiviError(f"{file}: not a readable image ({error})") from error


def shape_of_image(file: Path) -> tuple[int, int, int]:
    """(H, W, C) of an image file, by its header."""
    with _opened(file) as image:
        return image.height, image.width, len(MODES[image.mode])


def read_images(files: Sequence[Path]) -> Tensor:
    """The images [N, H, W, C] of files, all of one size and mode."""
    return torch.cat(list(_read_files(files, len(files))))


def _read_file(file: Path) -> np.ndarray:
    """One image, uint8 [H, W, C]."""
    with _opened(file) as image:
        array = np.array(image.convert(MODES[image.mode]))
    return array if array.ndim == 3 else array[..., None]


def kind_of_image(shape: Sequence[int]) -> str:
    """An image's size and mode in words, of its shape (H, W, C): "32 x 32 RGB"."""
    height, width, channels = shape
    mode = {1: "grey", 3: "RGB"}.get(channels, f"of {channels} channels")
    return f"{width} x {height} {mode}"


def dataset_images(name: str, data_root: Path) -> Tensor:
    """The images of one split of a public data set, uint8 [N, H, W, C]; see `labelled_images`."""
    return labelled_images(name, data_root)[0]


def labelled_images(name: str, data_root: Path) -> tuple[Tensor, Tensor]:
    """One split of a public data set through torchvision, fetched into data_root when it is not
    there yet.

    name  one of DATASET_NAMES, like "cifar10-train"
    Returns uint8 [N, H, W, C], and labels [N]
    """
    if name not in DATASET_NAMES:
        raise HsiviError(f"{name}: no such data set; one of {', '.join(DATASET_NAMES)} is wanted")
    base, _, split = name.rpartition("-")
    from torchvision import datasets  # heavy, and only this function needs it

    kind = getattr(datasets, DATASETS[base])
    place = Path(data_root) / {"cifar10": "cifar-10-batches-py"}.get(base, f"{DATASETS[base]}/raw")
    try:
        data = kind(str(data_root), train=split == "train")
    except RuntimeError:  # torchvision's word for "not there, or not whole"
        if is_offline():
            raise HsiviError(
                f"{name}: not in {place}, and {FORBIDDEN}; put torchvision's files there, or name "
                "another folder with --data-root"
            ) from None
        try:
            data = kind(str(data_root), train=split == "train", download=True)
        except (OSError, RuntimeError, EOFError) as error:
            reason = " ".join(str(error).split())[:120]
            raise HsiviError(
                f"{name}: not in {place}, and the download failed ({reason}); "
                "put torchvision's files there, or name another folder with --data-root"
            ) from error
    images, labels = torch.as_tensor(data.data), torch.as_tensor(data.targets)
    return images if images.ndim == 4 else images.unsqueeze(-1), labels


def load_png(seeds: Sequence[int], folder: Path) -> Tensor:
    """The images [N, H, W, C] of these seeds in a folder that `save_png` filled."""
    return read_images([Path(folder) / f"{seed:05d}.png" for seed in seeds])


PNG_END = b"IEND\xaeB`\x82"  # a PNG's last chunk, which a power cut may have cut off


def _is_whole(file: Path) -> bool:
    with open(file, "rb") as png:
        png.seek(max(0, file.stat().st_size - len(PNG_END)))
        return png.read() == PNG_END


def seeds_done(folder: Path) -> set[int]:
    """The seeds whose whole PNG lies in the folder; a folder that does not exist has none."""
    if not Path(folder).is_dir():
        return set()
    return {
        int(file.stem)
        for file in Path(folder).iterdir()
        if re.fullmatch(r"\d{5,}\.png", file.name) and file.is_file() and _is_whole(file)
    }


def save_npz(images: Tensor, path: Path) -> None:
    """All images, uint8 [N, H, W, C], in one file under "images"."""
    write_npz(path, IMAGES, {"images": images.cpu().numpy()})


def grid_of(images: Tensor, columns: int | None = None) -> Tensor:
    """One image [H, W, C] that shows all images, row by row; by default about as many columns as
    rows."""
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    step_down, step_right = height + GAP, width + GAP
    sheet = torch.full((rows * step_down - GAP, columns * step_right - GAP, channels), 255)
    sheet = sheet.to(torch.uint8)
    for index, image in enumerate(images.cpu()):
        top, left = index // columns * step_down, index % columns * step_right
        sheet[top : top + height, left : left + width] = image
    return sheet


def grid_png(images: Tensor, columns: int | None = None) -> bytes:
    """`grid_of` as the bytes of a PNG that says whose it is."""
    return image_png(grid_of(images, columns), SOFTWARE)


def save_grid(images: Tensor, path: Path, columns: int | None = None) -> None:
    """`grid_of` as a PNG file."""
    write_bytes(path, grid_png(images, columns))


def image_png(image: Tensor, software: str | None = None) -> bytes:
    """One image, uint8 [H, W, C], as the bytes of a PNG; software: what it says that made it."""
    if not has_picture(image.shape[2]):
        raise HsiviError(
            f"images of {image.shape[2]} channels have no picture: write them to an .npz file"
        )
    array = image.cpu().numpy()
    buffer, text = io.BytesIO(), PngInfo()
    if software:
        text.add_text("Software", software)
    picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    picture.save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()
