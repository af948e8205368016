"""Files that a user names to be written, and what of older ones they may take the place of.

What is ours says so: a PNG in its Software text, a page in its generator, an .npz file in its
comment, a comparison's JSON by its keys, a table of draws by the names of its columns.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ..errors import HsiviError
from .places import check_file, embedded, weights_folder
from .whole import read_json, replacing

PICTURE, PAGE, COMPARISON, IMAGES, STATISTICS, DRAWS, SUMMARIES = (
    "picture", "page", "comparison", "images", "statistics", "draws", "summaries of draws"
)  # fmt: skip
SOFTWARE = "hsivi"  # of pictures
HEADS = {
    PICTURE: re.compile(rb"tEXtSoftware\0" + SOFTWARE.encode()),
    PAGE: re.compile(b'<meta name="generator" content="hsivi">'),
    SUMMARIES: re.compile(rb'\A[^\n]*( q0\.95|,"?p\()'),  # of numbers, of classes
}
HEAD_SIZE = 1000  # bytes in which they stand
COMPARISON_KEYS = {"rows", "training", "about"}
COMMENTS = {kind: b"hsivi " + kind.encode() for kind in (IMAGES, STATISTICS, DRAWS)}
# what a run or a pipeline holds
MARKED = ("hsivi.json", "infer.json", "boost.json", "model_index.json")


def write_npz(path: Path, kind: str, arrays: Mapping[str, np.ndarray], small: bool = False) -> None:
    """An .npz file of ours. small: take time to compress it."""
    with replacing(path) as temporary:
        with open(temporary, "wb") as file:
            (np.savez_compressed if small else np.savez)(file, **arrays)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.comment = COMMENTS[kind]


def is_own(file: Path, kind: str) -> bool:
    """Whether a file says that it is of this kind of ours."""
    try:
        if kind == COMPARISON:
            return read_json(file).keys() == COMPARISON_KEYS
        if kind in COMMENTS:
            with zipfile.ZipFile(file) as archive:
                return archive.comment == COMMENTS[kind]
        with open(file, "rb") as opened:
            return HEADS[kind].search(opened.read(HEAD_SIZE)) is not None
    except (HsiviError, OSError, zipfile.BadZipFile):
        return False


def check_output(
    path: Path | str | None, kind: str, read: Iterable[Path | str | None], force: bool
) -> None:
    """Refuse to write over anything in a run, a model or what is read, and over what is not of this
    kind of ours.

    read   the files and folders that the command reads
    force  allow the latter
    """
    check_file(path, *read)
    if path is None or not Path(path).exists():
        return
    if holder := held_by(Path(path), read):
        raise HsiviError(
            f"{path} belongs to {holder}, in which nothing is written over: choose another place"
        )
    if not force and not is_own(Path(path), kind):
        raise HsiviError(
            f"{path} exists and holds something else than {kind} of hsivi: choose another name, or "
            "say --force"
        )


def held_by(file: Path, read: Iterable[Path | str | None]) -> Path | None:
    """The run, the model or the folder that is read in which a file lies, links followed or not."""
    sources = {embedded(source).resolve() for source in read if source is not None}
    sources.add(weights_folder().resolve())
    for folder in (*file.absolute().parents, *file.resolve().parents):
        marked = any((folder / name).exists() for name in MARKED)
        model = (folder / "config.json").exists() and any(folder.glob("*.safetensors"))
        if marked or model or folder.resolve() in sources:
            return folder
    return None
