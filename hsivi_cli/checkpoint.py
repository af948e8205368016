"""Files that are whole or absent, and the checkpoints of a run: safetensors and JSON, no pickle,
two kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .config import HsiviError

KEEP = 2


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
    removed when it fails.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp{path.suffix}"
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if temporary.is_dir() and path.is_dir():
                shutil.rmtree(path)
            os.replace(temporary, path)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there and can be."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


LEFT = re.compile(r"\..+\.\d+\.tmp.*|\.export-.+")  # names of what is half written


def is_fresh(out: Path) -> bool:
    """Whether a folder is absent or empty, but for what a killed process left half written."""
    return not out.exists() or all(LEFT.fullmatch(path.name) for path in out.iterdir())


def sweep(out: Path) -> None:
    """Delete what a killed process left half written in a run's folder."""
    for folder in (out, out / "checkpoint"):
        for path in folder.iterdir() if folder.is_dir() else ():
            if LEFT.fullmatch(path.name):
                remove(path)


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


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


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
    """All tensors of a safetensors file, on the CPU."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise HsiviError(
            f"{path} cannot be read ({error}); it is missing or damaged: copy it again"
        ) from error


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], state: dict) -> None:
    """Write folder/step-NNNNNN (tensors.safetensors, state.json) at once, then drop all but the
    newest two.
    """
    with replacing(folder / f"step-{step:06d}") as temporary:
        temporary.mkdir()
        write_tensors(temporary / "tensors.safetensors", tensors)
        (temporary / "state.json").write_text(json.dumps(state, indent=1))
    for old in checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old)


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first; folders of other names are nobody's."""
    found = folder.iterdir() if folder.is_dir() else ()
    numbered = [path for path in found if re.fullmatch(r"step-\d{6,}", path.name)]
    return sorted(numbered, key=lambda path: int(path.name.removeprefix("step-")))


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict] | None:
    """The newest checkpoint's tensors and state, or None where there is none yet."""
    found = checkpoints(folder)
    if not found:
        return None
    with usable(folder):
        state = json.loads((found[-1] / "state.json").read_text())
        return read_tensors(found[-1] / "tensors.safetensors"), state


@contextlib.contextmanager
def usable(folder: Path) -> Iterator[None]:
    """Turns what a damaged newest checkpoint leads to into a line that says how to go on."""
    try:
        yield
    except (HsiviError, OSError, LookupError, RuntimeError, TypeError, ValueError) as error:
        newest, *older = reversed(checkpoints(folder))
        hint = "start anew with another --out"
        if older:
            hint = f"delete {newest} to go on from {older[0].name}"
        reason = " ".join(str(error).split())[:200]
        raise HsiviError(f"the checkpoint {newest} is damaged ({reason}); {hint}") from error


def module_tensors(owner: object, names: Sequence[str]) -> dict[str, Tensor]:
    """The state of an object's modules of these names, as named tensors."""
    return {f"{m}.{n}": t for m in names for n, t in getattr(owner, m).state_dict().items()}


def load_modules(owner: object, names: Sequence[str], tensors: dict[str, Tensor]) -> None:
    """The inverse of `module_tensors`."""
    for m in names:
        mine = {n.removeprefix(f"{m}."): t for n, t in tensors.items() if n.startswith(f"{m}.")}
        getattr(owner, m).load_state_dict(mine)


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """An Adam's moments and counters as named tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"{prefix}.{index}.{key}": value
        for index, slots in state.items()
        for key, value in slots.items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, prefix: str, tensors: dict[str, Tensor]
) -> None:
    """The inverse of `optimizer_tensors`, for an optimizer of the same parameters."""
    state = optimizer.state_dict()
    state["state"] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix + "."):
            index, key = name[len(prefix) + 1 :].split(".")
            state["state"].setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict(state)
