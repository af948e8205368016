"""Images -> features, the statistics of a set of images, and their files.

A *detector* is a frozen network whose features stand for images. Its `stamp` names the network,
what it does to the size of images, and the digest of its weights: distances between statistics of
different stamps mean nothing and are refused.

Two kinds exist: `inception`, pytorch-fid's InceptionV3 (features of the last pooling, width 2048),
and small convolutional classifiers, each a folder with config.json and model.safetensors.
`fashion-mnist` is the embedded one of the second kind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import HsiviError
from ..files.device import exact_float32
from ..files.digest import digest
from ..files.images import from_images
from ..files.places import weights_folder
from ..files.whole import read_json, read_tensors

EMBEDDED = "fashion-mnist"
INCEPTION = "inception-pool3"


@dataclass(frozen=True)
class Detector:
    """A frozen network that turns images into features.

    stamp        what two statistics must share to be compared
    feature_dim  D
    features     images uint8 [B, H, W, C] -> float32 [B, D], on the detector's device
    """

    stamp: str
    feature_dim: int
    features: Callable[[Tensor], Tensor]


def load_detector(
    name: str | None = None, weights: Path | None = None, device: str | torch.device = "cpu"
) -> Detector:
    """The detector called `name`: "inception" (also for None), "fashion-mnist" (the embedded one),
    or a folder.

    weights  a checkpoint FILE for `inception`, in place of pytorch-fid's own download
    """
    check_named(name, weights)
    if name in (None, "inception"):
        from .inception import load_inception  # which is a detector of this module's

        return load_inception(weights, device)
    return _load_classifier(folder_of(name), device)


def check_named(name: str | None, weights: Path | None) -> None:
    """Refuse a detector that is not there, before the work that it is for. None: not named yet."""
    if name in (None, "inception"):
        if weights is not None and not weights.is_file():
            raise HsiviError(f"--detector-weights {weights}: not readable (there is no such file)")
        return
    if weights is not None:
        raise HsiviError(
            f"--detector-weights {weights}: only the detector inception takes a weights file; "
            f"for {name} name the folder that holds config.json and model.safetensors"
        )
    folder = folder_of(name)
    if not all((folder / part).is_file() for part in ("config.json", "model.safetensors")):
        raise HsiviError(
            f"detector {folder}: not found; give inception, {EMBEDDED}, "
            "or a folder with config.json and model.safetensors"
        )


def folder_of(name: str) -> Path:
    """Where a classifier of this name lies."""
    return weights_folder() / "detector" if name == EMBEDDED else Path(name)


class Classifier(nn.Module):
    """A small convolutional classifier whose penultimate layer is the feature vector.

    A 3 x 3 convolution at full size, then for each further width a halving one and a plain one,
    then two linear layers. Every convolution and the first linear layer are followed by batch
    normalisation and ReLU.
    """

    def __init__(
        self, image_size: int, in_channels: int, widths: list[int], feature_dim: int, classes: int
    ) -> None:
        super().__init__()
        layers = _block(in_channels, widths[0], stride=1)
        side = image_size
        for narrow, wide in pairwise(widths):
            layers += _block(narrow, wide, stride=2) + _block(wide, wide, stride=1)
            side = (side + 1) // 2
        layers += [nn.Flatten(), nn.Linear(widths[-1] * side * side, feature_dim, bias=False)]
        layers += [nn.BatchNorm1d(feature_dim), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(feature_dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] in [-1, 1] -> logits [B, classes]"""
        return self.head(self.trunk(x))


def _block(narrow: int, wide: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(narrow, wide, 3, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(wide), nn.ReLU()]


# field of config.json: what it must be
CONFIG_FIELDS = {
    "name": (str, "a word"),
    "image_size": (int, "a whole number"),
    "in_channels": (int, "a whole number"),
    "widths": (list, "a list of whole numbers"),
    "feature_dim": (int, "a whole number"),
    "classes": (int, "a whole number"),
}


def _read_classifier_config(path: Path) -> dict:
    config = read_json(path)
    if sorted(config) != sorted(CONFIG_FIELDS):
        raise HsiviError(
            f"{path}: a detector's configuration has exactly the fields "
            f"{', '.join(CONFIG_FIELDS)}; found {', '.join(sorted(config))}"
        )
    for field, (kind, words) in CONFIG_FIELDS.items():
        value = config[field]
        right = type(value) is kind and value
        if right and kind is not str:
            numbers = value if kind is list else [value]
            right = all(type(number) is int and number > 0 for number in numbers)
        if not right:
            raise HsiviError(f"{path}: {field} must be {words}, positive; found {value!r}")
    return config


def _load_classifier(folder: Path, device: str | torch.device) -> Detector:
    config = _read_classifier_config(folder / "config.json")
    name = config.pop("name")
    state = read_tensors(folder / "model.safetensors")
    network = _classifier_of(config, state, folder)
    trunk = network.trunk.eval().requires_grad_(False).to(device)
    side, channels = config["image_size"], config["in_channels"]

    def features(images: Tensor) -> Tensor:
        if images.shape[1:] != (side, side, channels):
            height, width, depth = images.shape[1:]
            raise HsiviError(
                f"detector {name} takes images of {side} x {side} with {channels} channel(s), "
                f"not {height} x {width} with {depth}; use --detector inception"
            )
        with exact_float32(device):
            return trunk(from_images(images.to(device)))

    stamp = f"{name} {side}x{side} no-resize {weights_digest(state)}"
    return Detector(stamp, config["feature_dim"], features)


def shapes_of(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in state.items()}


def _classifier_of(config: dict, state: dict[str, Tensor], folder: Path) -> Classifier:
    """The network of a configuration with these weights. Nothing larger than they are is made."""
    described = None
    if len(config["widths"]) <= len(state):  # each has several
        beyond = (RuntimeError, OverflowError, TypeError)  # of sizes of more than 64 bits
        with contextlib.suppress(*beyond), torch.device("meta"):
            described = shapes_of(Classifier(**config).state_dict())
    if described != shapes_of(state):
        raise HsiviError(
            f"{folder / 'model.safetensors'}: not the weights that config.json describes: copy "
            "both again"
        )
    network = Classifier(**config)
    network.load_state_dict({key: value.float() for key, value in state.items()})
    return network


def weights_digest(state: dict[str, Tensor]) -> str:
    """The digest of the numbers themselves: the same weights in another container have the same."""
    parts = []
    for key in sorted(key for key in state if not key.endswith("num_batches_tracked")):
        parts += [f"{key} {state[key].dtype} {tuple(state[key].shape)}", state[key]]
    return f"sha256:{digest(*parts)[:12]}"
