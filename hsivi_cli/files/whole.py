"""Files that are whole or absent: text, JSON, tensors, bytes."""

from __future__ import annotations

import contextlib
import glob
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import HsiviError
from .places import check_name


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a full disk or a forbidden place into a line for the user."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise HsiviError(
            f"could not write {path}: {reason}; free some space or choose another place"
        ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file or folder beside `path` that takes its place when the block succeeds, and is
    removed when it fails. What a killed process left of the same one goes too.
    """
    path = Path(path)
    temporary = temporary_of(path)
    for other in path.parent.glob(f".{glob.escape(path.name)}.*.tmp*"):
        left = LEFT.fullmatch(other.name)
        if left and not is_another(int(left[1])):
            remove(other)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if temporary.is_dir() and path.is_dir():
                shutil.rmtree(path)
            os.replace(temporary, path)
    finally:
        remove(temporary)


def temporary_of(path: Path) -> Path:
    """Where this process writes what is to take the place of `path`."""
    return path.parent / f".{path.name}.{os.getpid()}.tmp{path.suffix}"


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there and can be."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


LEFT = re.compile(r"\..+\.(\d+)\.tmp.*|\.export-.+")  # half written, and by whom


def is_fresh(out: Path) -> bool:
    """Whether a folder is absent or empty, but for what a killed process left half written."""
    return not out.exists() or all(LEFT.fullmatch(path.name) for path in out.iterdir())


def sweep(out: Path, shared: bool = False) -> None:
    """Delete what a killed process left half written in a folder of ours.

    shared  no lock keeps other processes out: what living ones write stays
    """
    for folder in (out, out / "checkpoint", out / "eval"):
        for path in folder.iterdir() if folder.is_dir() else ():
            left = LEFT.fullmatch(path.name)
            if left and not (shared and left[1] and is_another(int(left[1]))):
                remove(path)


def is_another(pid: int) -> bool:
    """Whether a process of this number runs here, and is not this one."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is another user's; or no system counts so far
        return True
    return True


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")  # names of odd bytes


def create_text(path: Path, text: str) -> None:
    """`write_text` of a file that another process may write first: what is there stays."""
    temporary = temporary_of(path)
    try:
        with writing(path):
            temporary.write_text(text, encoding="utf-8")
            try:
                os.link(temporary, path)
            except FileExistsError:
                pass
            except OSError:  # a file system without links, where it can only be likely
                if not path.exists():
                    os.replace(temporary, path)
    finally:
        remove(temporary)


def write_bytes(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, content: dict) -> None:
    """A JSON file in which what is not finite is null."""

    def strict(part):
        if isinstance(part, dict):
            return {key: strict(value) for key, value in part.items()}
        if isinstance(part, list):
            return [strict(value) for value in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    write_text(path, json.dumps(strict(content), indent=1, allow_nan=False) + "\n")


def check_kind(path: Path) -> None:
    """Refuse a pipe or a device, which would be waited for."""
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise HsiviError(f"{path} is no file, but a pipe or a device: take it out")


def is_finite(value: object) -> bool:
    """Whether a value from a JSON file is a number that a float can hold. To Python true is 1."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def is_same(one: object, other: object) -> bool:
    """Whether two values from JSON files are equal; true is not 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def all_finite(numbers: object) -> bool:
    """Whether a value from a JSON file is a list of finite numbers."""
    return isinstance(numbers, list) and all(map(is_finite, numbers))


def read_json(path: Path) -> dict:
    """The object in a JSON file."""
    check_kind(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise HsiviError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise HsiviError(f"{path} holds no JSON object but a {type(found).__name__}")
    return found


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    with replacing(path) as temporary:
        save_file(
            {name: t.detach().cpu().contiguous() for name, t in tensors.items()},
            temporary,
            metadata=metadata,
        )
        let_read(temporary)


def let_read(file: Path) -> None:
    """Give a file the mode that others are made with: safetensors' are their owner's alone."""
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU. Refuses what is not finite."""
    check_name(path)
    check_kind(path)
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise HsiviError(
            f"{path} cannot be read ({error}); it is missing or damaged: copy it again"
        ) from error
    check_finite(tensors, path)
    return tensors


def not_finite_in(tensors: dict[str, Tensor]) -> str | None:
    """The first tensor that is not finite throughout, in words."""
    for name, tensor in tensors.items():
        numbers = tensor.float() if tensor.itemsize == 1 else tensor  # 8-bit floats cannot be asked
        if bad := (~torch.isfinite(numbers)).sum().item():
            return f"{name} holds NaN or infinite values ({bad} of {tensor.numel()})"
    return None


def check_finite(tensors: dict[str, Tensor], place: Path) -> None:
    """Refuse the tensors of a place if one of them is not finite throughout."""
    if wrong := not_finite_in(tensors):
        raise HsiviError(
            f"{place}: {wrong}, with which nothing can be drawn: copy it again, or take an earlier "
            "state of it"
        )
