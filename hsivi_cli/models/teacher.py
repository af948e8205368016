"""Teachers: the one place that knows diffusers' models and schedulers.

A teacher is a pixel-space UNet2DModel with a variance-preserving discrete schedule. Here every
prediction type, learned variance and label convention ends: above this module a network is a
function (x, time, labels, alpha_bar) -> eps.
"""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..files.digest import digest
from ..method import schedule
from ..method.chain import Network
from ..method.lowered import Lowered
from .compiled import Forward, forward


@dataclass(frozen=True)
class Teacher:
    """A pretrained model, frozen, with its schedule.

    table        [T]        alpha_bar by time, float64
    shape        (C, H, W)
    label_count             classes, or None for an unconditional model
    scheduler               the diffusers scheduler, kept so that a student can be saved with it
    digest                  of the weights' content, which with prediction and schedule_name tells
                            one teacher from another
    origin                  revision, variant and subfolder, those that were given
    clip                    what its own pipeline does to x0, None where it does nothing
    """

    name: str
    unet: UNet2DModel
    scheduler: DDPMScheduler
    table: Tensor
    prediction: str
    shape: tuple[int, int, int]
    label_count: int | None
    digest: str
    origin: dict[str, str] = field(default_factory=dict)
    clip: schedule.Clip | None = None

    @property
    def image(self) -> tuple[int, int, int]:
        """(H, W, C) of what it draws."""
        channels, height, width = self.shape
        return height, width, channels

    @property
    def schedule_name(self) -> str:
        """The noise schedule in words that are equal for equal schedules: "linear 0.0001 to 0.02,
        1000 times".
        """
        config = self.scheduler.config
        kind, betas = config.beta_schedule, config.trained_betas
        if betas is not None:
            numbers = np.asarray(betas, dtype=np.float64)
            kind = f"trained betas {digest(numbers.tobytes())[:12]}"
        elif kind != "squaredcos_cap_v2":  # which has no ends
            kind += f" {config.beta_start:g} to {config.beta_end:g}"
        return f"{kind}, {len(self.table)} times"

    @property
    def identity(self) -> dict[str, str]:
        """What a student's hsivi.json keeps of its teacher."""
        return {
            "name": self.name,
            "digest": self.digest,
            "prediction": self.prediction,
            "schedule": self.schedule_name,
        } | self.origin

    def network(
        self,
        unet: UNet2DModel | None = None,
        dtype: str = "float32",
        forward: Forward = forward,
        clip: schedule.Clip | None = None,
    ) -> Network:
        """This teacher's UNet, or another of the same kind that may train, as an eps network."""
        own = unet or self.frozen(dtype)
        return eps_network(own, self.table, self.prediction, dtype, forward, clip)

    def training(
        self, unet: UNet2DModel, dtype: str, forward: Forward, again: bool
    ) -> tuple[Network, Lowered]:
        """A UNet that trains as an eps network, and what it is called with in bfloat16.

        again  whether its activations are made again for a backward pass
        """
        called, low = lowered(unet) if dtype == "bfloat16" else (unet, Lowered())
        if again:
            recompute(called)
        return self.network(called, dtype, forward, self.clip), low

    def frozen(self, dtype: str) -> UNet2DModel:
        """The network in the precision in which it is called."""
        return self.low if dtype == "bfloat16" else self.unet

    @cached_property
    def low(self) -> UNet2DModel:
        return lowered(self.unet)[0]

    def clipping_scheduler(self) -> DDPMScheduler:
        """The scheduler, saying of x0 what `clip` does: a student's is read off it."""
        clip = self.clip
        told = {"clip_sample": clip is not None and clip.quantile is None}
        if clip and clip.quantile is None:
            told["clip_sample_range"] = clip.reach
        elif clip:
            told |= {"thresholding": True, "sample_max_value": clip.reach}
            told["dynamic_thresholding_ratio"] = clip.quantile
        return DDPMScheduler.from_config(self.scheduler.config, **told)

    def new_unet(self) -> UNet2DModel:
        """A copy of the teacher's network that can be trained; still in eval mode, as dropout would
        move the target.
        """
        return copy.deepcopy(self.unet).requires_grad_(True)

    def layer_conditioned_unet(self, rows: int) -> UNet2DModel:
        """A `new_unet` whose labels are row * label_count + label, row in 0..rows-1: each row has
        label embeddings of its own, at first the teacher's, or zeros where it has none.
        """
        unet = self.new_unet()
        width = unet.time_embedding.linear_2.out_features
        own = torch.zeros(1, width) if self.label_count is None else unet.class_embedding.weight
        table = own.detach().to(unet.device).repeat(rows, 1)
        unet.class_embedding = torch.nn.Embedding.from_pretrained(table, freeze=False)
        return unet


def difference(told: dict[str, str], own: dict[str, str]) -> str | None:
    """In what one teacher's `identity` is another's: a few words, or None.

    The name may differ: a teacher may have moved. Where one keeps no schedule, it is believed.
    """
    parts = {"digest": "weights", "prediction": "prediction type", "schedule": "noise schedule"}
    for key, words in parts.items():
        if key in told and key in own and told[key] != own[key]:
            return f"other {words} ({told[key]} of {told['name']}, {own[key]} of {own['name']})"
    return None


def precision(dtype: str, device: torch.device) -> contextlib.AbstractContextManager:
    """In which a network is called."""
    if dtype == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def eps_network(
    unet: UNet2DModel,
    table: Tensor,
    prediction: str,
    dtype: str = "float32",
    forward: Forward = forward,
    clip: schedule.Clip | None = None,
) -> Network:
    """A UNet as a function (x [B,C,H,W], time [B], labels, alpha_bar [B] or None: looked up at
    time) -> eps, float32; with a clip, that of the clipped x0.
    """

    def network(
        x: Tensor, time: Tensor, labels: Tensor | None = None, alpha_bar: Tensor | None = None
    ) -> Tensor:
        if alpha_bar is None:
            alpha_bar = table.to(time.device)[time.long()]
        with precision(dtype, x.device):
            output = forward(unet, x, time.float(), labels)
        output = output.float()[:, : x.shape[1]]  # a learned variance comes second and is not used
        eps = schedule.to_eps(output, x, alpha_bar, prediction)
        return clip.eps(eps, x, alpha_bar) if clip else eps

    return network


def lowered(unet: UNet2DModel) -> tuple[UNet2DModel, Lowered]:
    """A copy of a network with the weights of convolutions and linear maps in bfloat16, as autocast
    would cast them at every call; all else it shares.
    """
    cast = torch.nn.Linear | torch.nn.modules.conv._ConvNd
    weights = [
        weight
        for module in unet.modules()
        if isinstance(module, cast)
        for weight in module.parameters(recurse=False)
    ]
    copies = [
        torch.nn.Parameter(weight.detach().bfloat16(), weight.requires_grad) for weight in weights
    ]
    own = {id(p): p for p in unet.parameters()}
    own |= {id(weight): low for weight, low in zip(weights, copies, strict=True)}
    return copy.deepcopy(unet, own), Lowered(weights, copies)


def recompute(unet: UNet2DModel) -> None:
    """Have a network's residual blocks keep their inputs alone for the backward pass, which makes
    the rest again.
    """

    def kept(block, *inputs: Tensor) -> Tensor:
        # nothing in it is random, and asking for the state of that would end a capture
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)

    unet.enable_gradient_checkpointing(kept)


def digest_of(module: torch.nn.Module) -> str:
    """A short hash of a module's weights, whatever file or precision they came from."""
    weights = sorted(module.state_dict().items())
    return digest(*(part for name, tensor in weights for part in (name, tensor.float())))[:16]
