"""Images -> features, the statistics of a set of images, and their files.

A *detector* is a frozen network whose features stand for images. Its `stamp` names the network,
what it does to the size of images, and the digest of its weights: distances between statistics of
different stamps mean nothing and are refused.

Two kinds exist: `inception`, pytorch-fid's InceptionV3 (features of the last pooling, width 2048),
and small convolutional classifiers, each a folder with config.json and model.safetensors.
`fashion-mnist` is the embedded one of the second kind.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..errors import HsiviError
from ..files.digest import digest
from ..files.places import weights_folder

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
    if name in (None, "inception"):
        return _load_inception(weights, device)
    if weights is not None:
        raise HsiviError(
            f"--detector-weights {weights}: only the detector inception takes a weights file; "
            f"for {name} name the folder that holds config.json and model.safetensors"
        )
    folder = weights_folder() / "detector" if name == EMBEDDED else Path(name)
    return _load_classifier(folder, device)


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
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise HsiviError(f"{path}: not a readable detector configuration ({error})") from error
    found = sorted(config) if isinstance(config, dict) else type(config).__name__
    if found != sorted(CONFIG_FIELDS):
        raise HsiviError(
            f"{path}: a detector's configuration has exactly the fields "
            f"{', '.join(CONFIG_FIELDS)}; found {found}"
        )
    for field, (kind, words) in CONFIG_FIELDS.items():
        value = config[field]
        numbers = value if kind is list else [value] if kind is int else []
        positive = all(type(n) is int and n > 0 for n in numbers)
        if type(value) is not kind or not value or not positive:
            raise HsiviError(f"{path}: {field} must be {words}, positive; found {value!r}")
    return config


def _load_classifier(folder: Path, device: str | torch.device) -> Detector:
    if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
        raise HsiviError(
            f"detector {folder}: not found; give inception, {EMBEDDED}, "
            "or a folder with config.json and model.safetensors"
        )
    config = _read_classifier_config(folder / "config.json")
    name = config.pop("name")
    network = Classifier(**config)
    try:
        state = load_file(folder / "model.safetensors")
        network.load_state_dict({key: value.float() for key, value in state.items()})
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise HsiviError(
            f"{folder / 'model.safetensors'}: not the weights that config.json describes ({reason})"
        ) from error
    trunk = network.trunk.eval().requires_grad_(False).to(device)
    side, channels = config["image_size"], config["in_channels"]

    def features(images: Tensor) -> Tensor:
        if images.shape[1:] != (side, side, channels):
            height, width, depth = images.shape[1:]
            raise HsiviError(
                f"detector {name} takes images of {side} x {side} with {channels} channel(s), "
                f"not {height} x {width} with {depth}; use --detector inception"
            )
        with _exact_float32(device):
            return trunk(images.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1)

    stamp = f"{name} {side}x{side} no-resize {_weights_digest(state)}"
    return Detector(stamp, config["feature_dim"], features)


class _Inception(nn.Module):
    """pytorch-fid's InceptionV3 up to the last pooling, without the download that pytorch-fid's
    constructor asks for."""

    def __init__(self) -> None:
        super().__init__()
        import torchvision  # heavy, and only this detector needs them
        from pytorch_fid import inception as fid

        # the same replacements as pytorch_fid.inception.fid_inception_v3
        net = torchvision.models.inception_v3(
            weights=None, num_classes=1008, aux_logits=False, init_weights=False
        )
        net.Mixed_5b = fid.FIDInceptionA(192, pool_features=32)
        net.Mixed_5c = fid.FIDInceptionA(256, pool_features=64)
        net.Mixed_5d = fid.FIDInceptionA(288, pool_features=64)
        net.Mixed_6b = fid.FIDInceptionC(768, channels_7x7=128)
        net.Mixed_6c = fid.FIDInceptionC(768, channels_7x7=160)
        net.Mixed_6d = fid.FIDInceptionC(768, channels_7x7=160)
        net.Mixed_6e = fid.FIDInceptionC(768, channels_7x7=192)
        net.Mixed_7b = fid.FIDInceptionE_1(1280)
        net.Mixed_7c = fid.FIDInceptionE_2(2048)
        net.dropout, net.fc = nn.Identity(), nn.Identity()
        net.transform_input = False
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 3, H, W] in [0, 1] -> features [B, 2048]"""
        x = nn.functional.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
        return self.net(2 * x - 1)


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """The same network with each batch normalisation inside the convolution before it, in place.

    torchvision's BasicConv2d holds the two as `conv` and `bn`; the network must be in eval().
    """
    for child in network.modules():
        if isinstance(getattr(child, "bn", None), nn.BatchNorm2d):
            child.conv = fuse_conv_bn_eval(child.conv, child.bn)
            child.bn = nn.Identity()
    return network


def _load_inception(weights: Path | None, device: str | torch.device) -> Detector:
    state = _inception_state(weights)
    network = _Inception()
    wanted = {key: state[key] for key in network.net.state_dict() if key in state}
    try:
        network.net.load_state_dict(wanted)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise HsiviError(
            f"{weights}: not pytorch-fid's InceptionV3 checkpoint ({reason})"
        ) from error
    on_cpu = torch.device(device).type == "cpu"
    layout = torch.channels_last if on_cpu else torch.contiguous_format  # faster there
    network = fold_batch_norm(network.eval()).requires_grad_(False)
    network = network.to(device, memory_format=layout)

    def features(images: Tensor) -> Tensor:
        if images.shape[3] not in (1, 3):
            raise HsiviError(
                f"detector inception takes grey or colour images, not {images.shape[3]} channels"
            )
        x = images.to(device).permute(0, 3, 1, 2).float() / 255
        with _exact_float32(device):
            return network(x.expand(-1, 3, -1, -1).contiguous(memory_format=layout))

    stamp = f"{INCEPTION} bilinear-299 {_weights_digest(wanted)}"
    return Detector(stamp, 2048, features)


def _inception_state(weights: Path | None) -> dict[str, Tensor]:
    """Tensors by name, from a file, or from pytorch-fid's own cache or address."""
    if weights is None:
        from pytorch_fid.inception import FID_WEIGHTS_URL

        try:
            with redirect_stdout(sys.stderr):  # where torch.hub tells what it downloads
                return torch.hub.load_state_dict_from_url(
                    FID_WEIGHTS_URL, map_location="cpu", weights_only=True
                )
        except (OSError, RuntimeError) as error:
            raise HsiviError(
                f"the Inception weights could not be fetched ({error}); download {FID_WEIGHTS_URL} "
                "elsewhere and pass --detector-weights FILE, "
                f"or put it into {torch.hub.get_dir()}/checkpoints"
            ) from error
    try:
        if weights.suffix == ".safetensors":
            return load_file(weights)
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # of foreign bytes the unpickler may make anything
        reason = " ".join(str(error).split())[:120]
        raise HsiviError(f"--detector-weights {weights}: not readable ({reason})") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise HsiviError(
            f"--detector-weights {weights}: a dictionary of tensors is wanted "
            "(pytorch-fid's pt_inception-2015-12-05 file)"
        )
    return state


@contextmanager
def _exact_float32(device: str | torch.device) -> Iterator[None]:
    """Full float32, whatever the caller has set: no autocast, no TF32 (its 10-bit mantissa moves
    an FID)."""
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        with torch.autocast(torch.device(device).type, enabled=False), torch.no_grad():
            yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


def _weights_digest(state: dict[str, Tensor]) -> str:
    """The digest of the numbers themselves: the same weights in another container have the same."""
    parts = []
    for key in sorted(key for key in state if not key.endswith("num_batches_tracked")):
        parts += [f"{key} {state[key].dtype} {tuple(state[key].shape)}", state[key]]
    return f"sha256:{digest(*parts)[:12]}"
