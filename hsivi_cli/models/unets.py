"""A UNet2DModel from its folder: never larger than its weights, and called once before it is
believed.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import Tensor

from ..errors import HsiviError, counted, reason_of
from ..files.progress import say
from ..files.whole import read_json
from .compiled import forward
from .weights import read_weights

EMBEDDINGS = ("positional", "fourier", "learned")  # of time
TRIAL = 4  # pixels of a side at a network's lowest level, in its trial


def load_unet(folder: Path, name: str, variant: str | None, times: int) -> UNet2DModel:
    """A UNet2DModel in float32 with every weight found in its file, on the CPU.

    times  of its schedule: it is called at the first and the last
    """
    config = read_config(folder / "config.json", name)
    tensors = read_weights(folder, variant)
    check_fit(config, tensors, folder)
    unet = made(config, folder)
    unet.load_state_dict(tensors, strict=False)  # check_fit has compared them
    check_kind(unet, name)
    check_size(unet, name, folder / "config.json")
    try_out(unet.requires_grad_(False).eval(), times, folder / "config.json")
    return unet


def read_config(file: Path, name: str) -> dict:
    """The arguments of UNet2DModel that a config.json holds."""
    config = read_json(file)
    if (kind := config.get("_class_name")) != "UNet2DModel":
        raise HsiviError(f"{name} is a {kind}; only UNet2DModel teachers can be distilled")
    known = inspect.signature(UNet2DModel.__init__).parameters
    config = {key: value for key, value in config.items() if key in known}
    for key, value in config.items():
        told = value if isinstance(value, list) else [value]
        numbers = not isinstance(known[key].default, bool | str)
        if numbers and any(isinstance(one, bool) for one in told):  # to Python true is 1
            raise HsiviError(f"{file} has {key} {json.dumps(value)}, and numbers are wanted")
    embedding = config.get("time_embedding_type", EMBEDDINGS[0])
    if embedding not in EMBEDDINGS:
        raise HsiviError(
            f"{file} has the time_embedding_type {embedding!r}; there are {', '.join(EMBEDDINGS)}"
        )
    return config


def made(config: dict, folder: Path, device: str = "cpu") -> UNet2DModel:
    try:
        with torch.device(device):
            return UNet2DModel(**config)
    except Exception as error:  # of a foreign configuration the constructor may make anything
        reason = " ".join(reason_of(error).split())[:300]
        raise HsiviError(
            f"{folder / 'config.json'} describes no network ({reason}): fetch or copy it again"
        ) from error


def check_fit(config: dict, tensors: dict[str, Tensor], folder: Path) -> None:
    """Refuse weights that are not those of a configuration. Nothing of their size is made."""
    depth, blocks = config.get("layers_per_block", 1), config.get("down_block_types", ())
    layers = depth * len(blocks) if type(depth) is int and isinstance(blocks, list) else 0
    if layers > len(tensors):  # each has several
        raise HsiviError(
            f"the weights in {folder} do not fit their config.json: it describes {layers} layers, "
            f"and they are {len(tensors)} tensors"
        )
    wanted = made(config, folder, "meta").state_dict()
    for key, tensor in wanted.items():
        if key not in tensors or tensors[key].shape != tensor.shape:
            raise HsiviError(
                f"the weights in {folder} do not fit their config.json: {key} is missing or has "
                "another shape"
            )
    if unknown := sorted(tensors.keys() - wanted.keys()):
        say(
            f"warning: the weights in {folder} hold {counted(len(unknown), 'tensor')} that their "
            f"config.json has no place for, such as {unknown[0]}: they are left out"
        )


def check_kind(unet: UNet2DModel, name: str) -> None:
    """Refuse networks that are no teachers: of other channels or conditions."""
    if unet.config.out_channels not in (unet.config.in_channels, 2 * unet.config.in_channels):
        channels = f"{unet.config.in_channels} channels in and {unet.config.out_channels} out"
        raise HsiviError(
            f"{name} has {channels}; a teacher has as many out as in, or twice as many with a "
            "learned variance"
        )
    if unet.config.class_embed_type is not None:
        raise HsiviError(
            f"{name} is conditioned by {unet.config.class_embed_type!r}; only class labels "
            "(num_class_embeds) are supported"
        )


def sides_of(unet: UNet2DModel) -> list:
    """Height and width of a network's images, as its configuration has them."""
    size = unet.config.sample_size
    return list(size) if isinstance(size, (list, tuple)) else [size] * 2


def shape_of(unet: UNet2DModel) -> tuple[int, int, int]:
    """(C, H, W) of a network's images."""
    return (unet.config.in_channels, *sides_of(unet))


def check_size(unet: UNet2DModel, name: str, file: Path) -> None:
    """Refuse a network whose image size is not told, or cannot be drawn."""
    sides, halved = sides_of(unet), 2 ** (len(unet.config.down_block_types) - 1)
    if len(sides) != 2 or not all(type(side) is int for side in sides):
        raise HsiviError(f"{name} does not say its image size: set sample_size in {file}")
    if any(side < 1 or side % halved for side in sides):
        raise HsiviError(
            f"{name} cannot draw images of {sides[0]} x {sides[1]}: its network halves a side to a "
            f"{halved}th; set a sample_size in {file} that {halved} divides"
        )


@torch.no_grad()
def try_out(unet: UNet2DModel, times: int, file: Path) -> None:
    """Call a network once, small, at the first and the last time: what is wrong in a configuration
    may show there alone.
    """
    halved = 2 ** (len(unet.config.down_block_types) - 1)
    sides = [min(side, TRIAL * halved) for side in sides_of(unet)]
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, unet.config.in_channels, *sides, generator=draw)
    time = torch.tensor([0.0, times - 1])
    labels = None if unet.config.num_class_embeds is None else torch.zeros(2, dtype=torch.long)
    try:
        output = forward(unet, x, time, labels)
    except Exception as error:  # of foreign settings the blocks may make anything
        reason = " ".join(reason_of(error).split())[:300]
        raise HsiviError(
            f"{file} describes a network that cannot be called ({reason}): fetch or copy it again"
        ) from error
    if output.shape[2:] != x.shape[2:]:
        raise HsiviError(
            f"{file} describes a network that draws {list(output.shape[2:])} from {sides} pixels: "
            "fetch or copy it again"
        )
    if not output.isfinite().all():
        raise HsiviError(
            f"{file} describes a network whose output is not finite at time 0 or {times - 1}, with "
            "which nothing can be drawn"
        )
