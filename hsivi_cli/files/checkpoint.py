"""The checkpoints of a run: safetensors and JSON with their sums, no pickle, two kept."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import HsiviError
from .progress import say
from .whole import check_kind, is_same, read_json, read_tensors, replacing, write_tensors

KEEP = 2
TENSORS, STATE, SUMS = "tensors.safetensors", "state.json", "SHA256SUMS"
# what a damaged file, or one of another run, leads to
DAMAGE = (OSError, LookupError, RuntimeError, TypeError, ValueError, ArithmeticError)
Made = TypeVar("Made")


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], state: dict) -> None:
    """Write folder/step-NNNNNN (tensors.safetensors, state.json, their SHA256SUMS) at once, then
    drop all but the newest two up to it; any later one is of a state that was gone back behind.
    """
    made = folder / f"step-{step:06d}"
    with replacing(made) as temporary:
        temporary.mkdir()
        write_tensors(temporary / TENSORS, tensors)
        (temporary / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        sums = "".join(f"{sha256(temporary / name)}  {name}\n" for name in (STATE, TENSORS))
        (temporary / SUMS).write_text(sums, encoding="utf-8")
    kept = [path for path in checkpoints(folder) if number_of(path) <= step][-KEEP:]
    for other in checkpoints(folder):
        if other not in kept:
            shutil.rmtree(other)


def sha256(file: Path) -> str:
    check_kind(file)
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first; folders of other names are nobody's."""
    found = folder.iterdir() if folder.is_dir() else ()
    numbered = [path for path in found if re.fullmatch(r"step-\d{6,}", path.name)]
    return sorted(numbered, key=number_of)


def number_of(checkpoint: Path) -> int:
    """The round of a checkpoint, by its folder's name."""
    return int(checkpoint.name.removeprefix("step-"))


def last_good(out: Path) -> str:
    """What a run in this folder can go back to, in words."""
    found = checkpoints(out / "checkpoint")
    return f"{found[-1]} is the last good state" if found else "there was no checkpoint yet"


def go_back(folder: Path, change: dict) -> Path | None:
    """The checkpoint before the newest, or the only one, made the newest with other values in its
    state; None where there is none.
    """
    found = checkpoints(folder)
    if not found:
        return None
    path = found[-2:][0]
    tensors, state = read_checkpoint(path)
    save_checkpoint(folder, number_of(path), tensors, state | change)  # later ones go with it
    return path


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict] | None:
    """The tensors and state of the newest checkpoint that is whole, or None where there is none
    yet.
    """
    return restore(folder, lambda tensors, state: (tensors, state))


def restore(folder: Path, take: Callable[[dict[str, Tensor], dict], Made]) -> Made | None:
    """What `take(tensors, state)` makes of the newest checkpoint, or with a warning of the one
    before, where that is damaged or `take` cannot use it. None where there is none yet.
    """
    damaged = {}
    for path in reversed(checkpoints(folder)):
        try:
            made = take(*read_checkpoint(path))
        except (*DAMAGE, HsiviError) as error:
            damaged[str(path)] = " ".join(str(error).split())[:200]
            continue
        for broken, reason in damaged.items():
            say(f"warning: the checkpoint {broken} is damaged ({reason}): {path.name} takes over")
        return made
    if damaged:
        which = " and ".join(reversed(damaged))
        raise HsiviError(
            f"damaged: {which} ({next(iter(damaged.values()))}); copy the run's folder again, or "
            "start anew with another --out"
        )
    return None


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors and state of one checkpoint. Refuses what is not as it was written; where no sums
    were, it is believed.
    """
    if (path / SUMS).exists():
        check_kind(path / SUMS)
        lines = (path / SUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: told for told, _, name in (line.partition("  ") for line in lines)}
        for name in (STATE, TENSORS):
            if sums.get(name) != sha256(path / name):
                raise HsiviError(f"{name} is not what was written: its SHA-256 is another")
    state = read_json(path / STATE)
    if not is_same(state["round"], number_of(path)):
        raise HsiviError(f"{STATE} is of round {state['round']}")
    return read_tensors(path / TENSORS), state


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
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, tensor in tensors.items():
        if name.startswith(prefix + "."):
            index, key = name[len(prefix) + 1 :].split(".")
            wanted = () if key == "step" else parameters[int(index)].shape
            if tensor.shape != wanted:  # torch believes any
                raise HsiviError(f"{name} has the shape {list(tensor.shape)}")
            state["state"].setdefault(int(index), {})[key] = tensor
    moments = {"step", "exp_avg", "exp_avg_sq"}
    for index, slots in state["state"].items():
        if missing := moments - slots.keys():
            raise HsiviError(f"{prefix}.{index} lacks {', '.join(sorted(missing))}")
    optimizer.load_state_dict(state)


def slow(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Multiply an optimizer's rates, numbers or tensors."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * factor
