"""Where things lie: what comes with the package, and places that may be written."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import HsiviError


def weights_folder() -> Path:
    """The embedded teacher, detector, reference and students: beside the package in a wheel, above
    it in a checkout.
    """
    package = Path(__file__).parent.parent
    inside = package / "weights"
    return inside if inside.is_dir() else package.parent / "weights"


def embedded(source: str | Path) -> Path:
    """A path, where "embedded:students/4" and the like name what comes with the package."""
    text = str(source)
    return (
        weights_folder() / text.removeprefix("embedded:")
        if text.startswith("embedded:")
        else Path(source)
    )


def check_place(path: Path | str | None, folder: bool = False) -> None:
    """Refuse a place that no file, or no folder, can be written to, before the work that it is
    for.
    """
    if path is None:
        return
    path = Path(path).absolute()
    if path.exists() and not os.access(path, os.W_OK):
        raise HsiviError(f"{path} may not be written: choose another place")
    if path.is_dir():
        return
    if folder and path.exists():
        raise HsiviError(f"{path} is a file: give the name of a folder")
    above = next(p for p in path.parents if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise HsiviError(f"nothing can be written into {above}: choose another place than {path}")


def check_file(path: Path | str | None, *others: Path | str | None) -> None:
    """`check_place` of a file that may be replaced: it is no folder, and none of the `others`."""
    check_place(path)
    if path is None:
        return
    if Path(path).is_dir():
        raise HsiviError(f"{path} is a folder: give the name of a file")
    for other in others:
        if other is not None and Path(path).resolve() == Path(other).resolve():
            raise HsiviError(f"{path} is named twice: what is written would take its place")
