"""A diffusers network's files of weights: which of them belong together, and what they hold.

    diffusion_pytorch_model[.VARIANT].safetensors, or .bin
    diffusion_pytorch_model.safetensors.index[.VARIANT].json, or .bin.index: of shards

Safetensors come before .bin, and one file before shards, wherever the names come from: a folder's
or a hub's list. No pickle is run.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import HsiviError
from ..files.whole import check_finite, read_json, read_tensors

STEM = "diffusion_pytorch_model"
KINDS = ("safetensors", "bin")
WHOLE = re.compile(rf"(?!.*-\d+-of-\d+){STEM}\.(?:(?P<variant>[^.]+)\.)?(?P<kind>safetensors|bin)")
INDEX = re.compile(rf"{STEM}\.(?P<kind>safetensors|bin)\.index\.(?:(?P<variant>[^.]+)\.)?json")
SHARD = r"(?:\.{0}-\d+-of-\d+|-\d+-of-\d+\.{0})"  # a variant's, as of now and of before
# of modules that were saved as torch.compile or DistributedDataParallel wrap them
WRAPPED = re.compile(r"^module\.|_orig_mod\.")
# of attention blocks as they were named until 2023
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class Weights(NamedTuple):
    """What is read for one network: a file, or an index of shards.

    kind  safetensors or bin
    """

    file: str
    kind: str
    variant: str | None
    sharded: bool


def weights_among(names: Collection[str]) -> list[Weights]:
    """All weights that the file names in a folder stand for, those that are read first first."""
    found = []
    for name in sorted(names):
        for sharded, pattern in ((False, WHOLE), (True, INDEX)):
            if told := pattern.fullmatch(name):
                found.append(Weights(name, told["kind"], told["variant"], sharded))
    return sorted(found, key=lambda one: (KINDS.index(one.kind), one.sharded))


def chosen(names: Collection[str], variant: str | None, place: str) -> Weights:
    """The weights to read of a folder. Refuses a variant that is not there, and none where there
    are variants alone, with what to type.
    """
    found = weights_among(names)
    fit = [one for one in found if one.variant == variant]
    if fit:
        return fit[0]
    others = sorted({one.variant for one in found if one.variant})
    plain = any(one.variant is None for one in found)
    if variant is None and others:
        raise HsiviError(
            f"{place} has weights of the variant {' and '.join(others)} alone: give --variant "
            f"{others[0]}"
        )
    if variant is not None and found:
        has = [f"--variant {one}" for one in others] + ["no --variant"] * plain
        raise HsiviError(f"{place} has no weights of --variant {variant}: give {', or '.join(has)}")
    raise HsiviError(
        f"the weights in {place} cannot be loaded: there is no {STEM}.safetensors or .bin; fetch "
        "or copy them again"
    )


def files_of(weights: Weights, names: Collection[str]) -> list[str]:
    """The file names among a folder's that these weights consist of."""
    if not weights.sharded:
        return [weights.file]
    shard = SHARD.format(re.escape(weights.variant)) if weights.variant else r"-\d+-of-\d+"
    pattern = re.compile(rf"{STEM}{shard}\.{weights.kind}")
    return [weights.file, *sorted(name for name in names if pattern.fullmatch(name))]


def read_weights(folder: Path, variant: str | None) -> dict[str, Tensor]:
    """A network's weights by their names of today, in float32. Refuses what has no fractions."""
    names = [file.name for file in folder.iterdir() if file.is_file()]
    weights = chosen(names, variant, str(folder))
    tensors = {}
    for file in shards_of(folder, weights) if weights.sharded else [folder / weights.file]:
        tensors |= read_tensors(file) if weights.kind == "safetensors" else read_bin(file)
    if all(WRAPPED.search(name) for name in tensors):
        tensors = {WRAPPED.sub("", name): tensor for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise HsiviError(
                f"the weights in {folder} cannot be loaded: {name} holds {tensor.dtype} numbers, "
                "which are no weights; save them as float32"
            )
    return {name_of_today(name): tensor.float() for name, tensor in tensors.items()}


def shards_of(folder: Path, weights: Weights) -> list[Path]:
    """The files that an index names, all of them beside it."""
    told = read_json(folder / weights.file).get("weight_map")
    if not isinstance(told, dict) or not all(isinstance(name, str) for name in told.values()):
        raise HsiviError(f"{folder / weights.file} names no files of weights: copy it again")
    names = sorted(set(told.values()))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise HsiviError(
                f"{folder / weights.file} names {name}, which is not beside it: fetch or copy it "
                "again"
            )
    return [folder / name for name in names]


def read_bin(file: Path) -> dict[str, Tensor]:
    """The tensors of a .bin file, which is read as torch's weights and never run."""
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of foreign bytes the unpickler may make anything
        reason = " ".join(str(error).split())[:120]
        raise HsiviError(
            f"the weights in {file} cannot be loaded; fetch or copy them again ({reason})"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise HsiviError(
            f"the weights in {file} cannot be loaded: a dictionary of tensors is wanted, as "
            "save_pretrained writes"
        )
    check_finite(found, file)
    return found


def name_of_today(name: str) -> str:
    """A weight's name in the versions of diffusers that are supported."""
    parts = name.split(".")
    if "attentions" in parts and len(parts) > 1 and parts[-2] in RENAMED:
        parts[-2] = RENAMED[parts[-2]]
    return ".".join(parts)
