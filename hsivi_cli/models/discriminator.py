"""A fake score's encoder as a discriminator [SiDA, Zhou et al. 2024]: no network beside it.

The map after a UNet2DModel's middle block, averaged over channels, is the logits [B, 1, h, w]. Its
forward pass is written in two halves, so that real images need the first alone, and drawn ones have
score and logits of one pass.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..method.networks import Discriminator, RealImages
from .compiled import heard_times
from .teacher import Teacher, eps_network, precision


class Encoded(NamedTuple):
    """What the first half of a network's pass leaves to the second.

    middle     [B, C, h, w]  the map after the middle block
    emb        [B, E]        of times and labels
    residuals                of the blocks on the way down
    """

    middle: Tensor
    emb: Tensor
    residuals: tuple[Tensor, ...]

    @property
    def logits(self) -> Tensor:
        return self.middle.mean(1, keepdim=True)


def encode(unet, x: Tensor, times: Tensor, labels: Tensor | None) -> Encoded:
    """UNet2DModel.forward down to its middle block."""
    if unet.config.center_input_sample:
        x = 2 * x - 1
    emb = unet.time_embedding(unet.time_proj(heard_times(unet, times)).to(unet.dtype))
    if labels is not None:
        emb = emb + unet.class_embedding(labels).to(unet.dtype)
    skip, hidden = x, unet.conv_in(x)
    residuals = (hidden,)
    for block in unet.down_blocks:
        if hasattr(block, "skip_conv"):
            hidden, own, skip = block(hidden_states=hidden, temb=emb, skip_sample=skip)
        else:
            hidden, own = block(hidden_states=hidden, temb=emb)
        residuals += own
    if unet.mid_block is not None:
        hidden = unet.mid_block(hidden, emb)
    return Encoded(hidden, emb, residuals)


def decode(unet, encoded: Encoded, times: Tensor) -> Tensor:
    """UNet2DModel.forward from there to its output."""
    hidden, emb, residuals = encoded
    skip = None
    for block in unet.up_blocks:
        own, residuals = residuals[-len(block.resnets) :], residuals[: -len(block.resnets)]
        if hasattr(block, "skip_conv"):
            hidden, skip = block(hidden, own, emb, skip)
        else:
            hidden = block(hidden, own, emb)
    output = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
    if skip is not None:
        output = output + skip
    if unet.config.time_embedding_type == "fourier":
        output = output / times.reshape(-1, 1, 1, 1)
    return output


def make_discriminator(teacher: Teacher, unet, dtype: str, images: RealImages) -> Discriminator:
    """The encoder of a fake score of this teacher's kind, and what it tells drawn images from. It
    is never compiled.
    """

    def both(x: Tensor, time: Tensor, labels: Tensor | None, alpha_bar: Tensor):
        seen = []

        def forward(unet, x: Tensor, times: Tensor, labels: Tensor | None) -> Tensor:
            seen.append(encode(unet, x, times, labels))
            return decode(unet, seen[0], times)

        network = eps_network(unet, teacher.table, teacher.prediction, dtype, forward, teacher.clip)
        return network(x, time, labels, alpha_bar), seen[0].logits.float()

    def logits(x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        with precision(dtype, x.device):
            return encode(unet, x, time.float(), labels).logits.float()

    return Discriminator(both, logits, images)
