"""Students on disk: a diffusers pipeline whose chain and noise scales lie beside the network.

A run's folder is the exported student: model_index.json, unet/, scheduler/, chain.safetensors,
hsivi.json (what it is and how it was made) and README.md. What resume needs lies in checkpoint/
below. docs/formats.md lists every field.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor

from ..errors import HsiviError, counted
from ..files.places import embedded
from ..files.whole import (
    check_finite,
    let_read,
    read_tensors,
    write_tensors,
    write_text,
    writing,
)
from ..method.chain import Chain, draw_noise, join_noise, sample
from .compiled import forward
from .description import is_student, read_info, write_info
from .loading import read_teacher
from .schedules import clip_of
from .teacher import Teacher, eps_network
from .unets import shape_of


@dataclass(frozen=True)
class Student:
    """A trained network with its chains, by number of calls.

    model       the network and its schedule, loaded as a teacher is
    chains      {nfe: Chain};  log_scales {nfe: [1 or K, ...]}
    info        hsivi.json: the teacher's name and digest, the configuration, steps, measured
                distances
    """

    name: str
    model: Teacher
    chains: dict[int, Chain]
    log_scales: dict[int, Tensor]
    info: dict

    def budget(self, nfe: int | None) -> int:
        """The number of calls to use: the one asked for if the student has it, its own if it has
        one.
        """
        has = ", ".join(map(str, sorted(self.chains)))
        trained = f"{self.name} was trained for {counted(has, 'call')}"
        if nfe is None and len(self.chains) == 1:
            return next(iter(self.chains))
        if nfe is None:
            raise HsiviError(f"{trained}: choose one with --nfe")
        if nfe not in self.chains:
            raise HsiviError(f"{trained}, not {nfe}: use --nfe {has}, or train one")
        return nfe


def is_whole(folder: Path) -> bool:
    """Whether all parts of an exported student are there."""
    parts = (
        "model_index.json",
        "chain.safetensors",
        "scheduler/scheduler_config.json",
        "unet/config.json",
    )
    weights = any((folder / "unet").glob("*.safetensors"))
    return weights and all((folder / part).exists() for part in parts)


def check_has(folder: Path, name: str | Path, part: str) -> None:
    """Refuse a place without a part that every student has. name: how the user calls it."""
    if not (folder / part).is_file():
        raise HsiviError(
            f"there is no student at {name}: {part} is missing; give a folder that `hsivi train` "
            "wrote; one on the hub is to be fetched first"
        )


def check_exported(folder: Path, name: str | Path) -> None:
    """Refuse a place where no whole student lies. name: how the user calls it."""
    if is_student(folder) and not is_whole(folder):
        raise HsiviError(
            f"{name} holds no whole student: its training stopped before one was exported, and the "
            "same line again goes on; or parts of it are missing: copy it again"
        )
    check_has(folder, name, "chain.safetensors")


def open_run(path: str | Path) -> tuple[Path, dict]:
    """The folder of a run that exported a student, and its hsivi.json. Refuses all else."""
    folder = embedded(path)
    check_has(folder, path, "hsivi.json")
    info = read_info(folder)
    check_exported(folder, path)
    return folder, info


def load_student(path: str | Path, device: str | torch.device = "cpu") -> Student:
    folder, info = open_run(path)
    chains, log_scales = load_chains(folder)
    model = read_teacher(str(folder), device)
    check_scales(log_scales, model.shape, folder)
    return Student(str(path), model, chains, log_scales, info)


def load_chains(folder: Path) -> tuple[dict[int, Chain], dict[int, Tensor]]:
    """The chains and noise scales of a student's folder, by number of calls."""
    file = folder / "chain.safetensors"
    tensors = read_tensors(file)
    found, log_scales = {}, {}
    budgets = {name.partition(".")[0] for name in tensors}
    for nfe in sorted(int(word) for word in budgets if word.isdecimal()):
        parts = {f.name: tensors.get(f"{nfe}.{f.name}") for f in fields(Chain)}
        # as earlier versions wrote it
        if parts["top_sd"] is None:
            parts["top_sd"] = torch.ones((), dtype=torch.float64)
        if parts["c0"] is None and parts["ce"] is not None:
            parts["c0"] = torch.zeros_like(parts["ce"])
        scale = tensors.get(f"{nfe}.log_scale")
        if wrong := fault_of_chain(parts, scale, nfe):
            raise HsiviError(f"{file} is no chain: {nfe}.{wrong}; copy it again")
        found[nfe], log_scales[nfe] = Chain(**parts), scale
    if not found:
        raise HsiviError(f"{file} is no chain: it holds none; copy it again")
    return found, log_scales


def fault_of_chain(
    parts: dict[str, Tensor | None], log_scale: Tensor | None, nfe: int
) -> str | None:
    """What is wrong with the tensors of a chain of nfe calls and its noise scale, in words."""
    for name, tensor in (parts | {"log_scale": log_scale}).items():
        if tensor is None:
            return f"{name} is missing"
    for name, tensor in parts.items():
        wanted = (nfe + 1,) * {"ce": 2, "c0": 2, "top_sd": 0}.get(name, 1)
        if tensor.shape != wanted or tensor.dtype != torch.float64:
            return f"{name} is {tensor.dtype} {list(tensor.shape)}, not float64 {list(wanted)}"
    if not (parts["time"].diff() > 0).all():
        return "time does not rise"
    if not ((parts["alpha_bar"] > 0) & (parts["alpha_bar"] <= 1)).all():
        return "alpha_bar lies in (0, 1]"
    if not 0 < parts["top_sd"] < math.inf:
        return "top_sd is no sd"
    if log_scale.dim() != 4 or len(log_scale) not in (1, nfe):
        return f"log_scale is {list(log_scale.shape)}, not one of {nfe} layers' or of all"
    return None


def check_scales(log_scales: dict[int, Tensor], shape: Sequence[int], folder: Path) -> None:
    """Refuse noise scales that do not fit a student's images (C, H, W)."""
    for nfe, scale in log_scales.items():
        if not all(a in (1, b) for a, b in zip(scale.shape[1:], shape, strict=True)):
            raise HsiviError(
                f"{folder / 'chain.safetensors'} is no chain: {nfe}.log_scale is "
                f"{list(scale.shape)}, for images of {list(shape)}; copy it again"
            )


def save_student(
    folder: Path,
    unet,
    scheduler,
    chains_: dict[int, Chain],
    log_scales: dict[int, Tensor],
    info: dict,
    card: str,
) -> None:
    """Write or replace the exported student; each part is whole at any time. info becomes
    hsivi.json, card README.md.
    """
    pipeline = HSIVIPipeline(unet, scheduler)
    pipeline.chains, pipeline.log_scales = chains_, log_scales
    with writing(folder), tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as temporary:
        pipeline.save_pretrained(temporary)
        for file in sorted(p for p in Path(temporary).rglob("*") if p.is_file()):
            target = folder / file.relative_to(temporary)
            target.parent.mkdir(exist_ok=True)
            let_read(file)
            file.replace(target)
    write_text(folder / "README.md", card)
    write_info(folder, info)


class HSIVIPipeline(DiffusionPipeline):
    """A student as a diffusers pipeline.

    HSIVIPipeline.from_pretrained("runs/x")(batch_size=16, num_inference_steps=4).images

    unet       UNet2DModel
    scheduler  any diffusers scheduler of the teacher's betas and prediction type; only its
               configuration is used
    """

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.chains: dict[int, Chain] = {}
        self.log_scales: dict[int, Tensor] = {}

    def save_pretrained(self, save_directory, **kwargs) -> None:
        super().save_pretrained(save_directory, **kwargs)
        tensors = {
            f"{n}.{f.name}": getattr(c, f.name)
            for n, c in self.chains.items()
            for f in fields(Chain)
        }
        tensors |= {f"{n}.log_scale": scale for n, scale in self.log_scales.items()}
        write_tensors(Path(save_directory) / "chain.safetensors", tensors)

    @classmethod
    def from_pretrained(cls, path, **kwargs) -> HSIVIPipeline:
        folder = embedded(path)
        check_exported(folder, path)
        chains, log_scales = load_chains(folder)
        pipeline = super().from_pretrained(folder, **kwargs)
        check_finite(pipeline.unet.state_dict(), folder / "unet")
        pipeline.chains, pipeline.log_scales = chains, log_scales
        check_scales(pipeline.log_scales, shape_of(pipeline.unet), folder)
        return pipeline

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        class_labels: Tensor | list[int] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ):
        """Draw images.

        num_inference_steps  network calls; one of `self.chains`, by default the fewest
        generator            one, or one an image: of a seed below 2^32, it draws the image that
                             `hsivi sample` draws of that seed and label
        class_labels         [batch_size], needed by a class-conditional student
        output_type          "pil", "np" (NHWC in [0, 1]) or "pt" (NCHW in [0, 1])
        """
        nfe = min(self.chains) if num_inference_steps is None else num_inference_steps
        if nfe not in self.chains:
            raise ValueError(f"this student draws with {sorted(self.chains)} calls, not {nfe}")
        device, config = self._execution_device, self.unet.config
        shape = shape_of(self.unet)
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"{len(generator)} generators for a batch of {batch_size}: give one, or one an "
                "image"
            )
        labels = None if class_labels is None else torch.as_tensor(class_labels, device=device)
        if labels is not None and labels.shape != (batch_size,):
            raise ValueError(f"class_labels {list(labels.shape)} for a batch of {batch_size}")
        classes = config.num_class_embeds
        if labels is not None and classes and not ((labels >= 0) & (labels < classes)).all():
            raise ValueError(f"class_labels {labels.tolist()}: they lie in 0..{classes - 1}")
        table = self.scheduler.alphas_cumprod.double()

        def called(unet, x, *rest):  # the pipeline may have been loaded in half precision
            return forward(unet, x.to(unet.dtype), *rest)

        clip = clip_of(self.scheduler.config, "the scheduler")
        prediction = self.scheduler.config.prediction_type
        network = eps_network(self.unet, table, prediction, forward=called, clip=clip)
        several = isinstance(generator, list)
        drawn = [
            draw_noise(one, nfe, shape, classes, 1 if several else batch_size)
            for one in (generator if several else [generator])
        ]
        x, _, noise = join_noise(drawn, device)
        log_scale = self.log_scales[nfe].to(device)
        x = sample(network, self.chains[nfe], x, noise, log_scale, labels)
        images = (x / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).cpu().numpy()
            images = self.numpy_to_pil(images) if output_type == "pil" else images
        return ImagePipelineOutput(images=images) if return_dict else (images,)
