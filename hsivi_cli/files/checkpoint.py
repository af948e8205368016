"""The checkpoints of a run: safetensors and JSON, no pickle, two kept."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import HsiviError
from .whole import read_tensors, replacing, write_tensors

KEEP = 2


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


def last_good(out: Path) -> str:
    """What a run in this folder can go back to, in words."""
    found = checkpoints(out / "checkpoint")
    return f"{found[-1]} is the last good state" if found else "there was no checkpoint yet"


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
