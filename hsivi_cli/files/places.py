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


EMBEDDED = "embedded:"  # what names of what comes with the package begin with


def embedded(source: str | Path) -> Path:
    """A path, where "embedded:students/4" and the like name what comes with the package. Refuses
    such a name that there is not.
    """
    text = str(source)
    if not text.startswith(EMBEDDED):
        return Path(source)
    path = weights_folder() / text.removeprefix(EMBEDDED)
    if not path.exists():
        raise HsiviError(
            f"{source} does not come with hsivi: there are {', '.join(embedded_names())}"
        )
    return path


def embedded_names() -> list[str]:
    """What comes with the package: "embedded:teacher", "embedded:students/4", ..."""
    names = [f"students/{calls}" for calls in shipped_students()]
    return [EMBEDDED + name for name in ("teacher", "detector", "reference.npz", *names)]


def shipped_students() -> list[str]:
    """The numbers of calls of the students that come with the package, fewest first."""
    found = [folder.name for folder in (weights_folder() / "students").iterdir()]
    return sorted(found, key=lambda name: [int(calls) for calls in name.split("-")])


def name_of(source: str | None) -> str:
    """What a teacher's or a student's default folder is called: after the last part of its path or
    hub id.
    """
    if source in (None, "embedded:teacher"):
        return "embedded"
    if source.startswith(EMBEDDED):
        return source.replace(":", "-").replace("/", "-")
    return Path(source).name or Path(source).absolute().name


def check_name(path: Path | str) -> None:
    """Refuse a path whose bytes are no UTF-8: safetensors are written there, but not read."""
    try:
        os.fsencode(path).decode("utf-8")
    except UnicodeError:
        raise HsiviError(
            f"{path} is no valid UTF-8, and what is written by such a name could not be read "
            "again: rename it, or choose another"
        ) from None


def check_place(path: Path | str | None, folder: bool = False) -> None:
    """Refuse a place that no file, or no folder, can be written to, before the work that it is
    for.
    """
    if path is None:
        return
    check_name(path)
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
    if Path(path).exists() and not Path(path).is_file():  # what is written would take its place
        raise HsiviError(f"{path} is a device or a pipe: give the name of a file")
    for other in others:
        if other is not None and Path(path).resolve() == Path(other).resolve():
            raise HsiviError(f"{path} is named twice: what is written would take its place")
