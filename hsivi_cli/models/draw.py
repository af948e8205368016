"""Seeds to images in memory, from any network and chain: student, solver and many-call teacher
alike.

One seed decides all of an image's noise, drawn on the CPU, so neither batch size nor device nor the
number of processes changes it; samplers of one shape share x_K seed by seed, whatever their number
of calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from ..errors import HsiviError
from ..files.digest import digest
from ..files.images import to_images
from ..method import chain as chains
from ..method.chain import Chain, Network
from .spacings import solver
from .student import Student, load_student
from .teacher import Teacher


@dataclass(frozen=True)
class Sampler:
    """A network and the chain it is walked through.

    kind         student, solver or teacher
    digest       of the network: its weights and what they predict
    label_count  classes, None for an unconditional network
    """

    name: str
    kind: str
    network: Network
    chain: Chain
    log_scale: Tensor
    shape: tuple[int, ...]
    label_count: int | None
    digest: str

    @property
    def nfe(self) -> int:
        return self.chain.nfe


def chain_digest(sampler: Sampler) -> str:
    """The digest of the layers and their noise scale."""
    return digest(*(getattr(sampler.chain, f.name) for f in fields(Chain)), sampler.log_scale)


def student_sampler(student: Student, nfe: int | None = None, dtype: str = "float32") -> Sampler:
    nfe, model = student.budget(nfe), student.model
    return Sampler(
        name=student.name,
        kind="student",
        network=model.network(dtype=dtype),
        chain=student.chains[nfe],
        log_scale=student.log_scales[nfe],
        shape=model.shape,
        label_count=model.label_count,
        digest=f"{model.digest} {model.prediction}",
    )


def solver_sampler(
    teacher: Teacher, name: str, nfe: int, kind: str = "solver", dtype: str = "float32"
) -> Sampler:
    """A training-free solver on a teacher; kind "teacher" marks the many-call one that stands for
    the teacher itself.
    """
    return Sampler(
        name=name,
        kind=kind,
        network=teacher.network(dtype=dtype),
        chain=solver(name, nfe, teacher.scheduler, teacher.table),
        log_scale=torch.zeros(1, *[1] * len(teacher.shape)),
        shape=teacher.shape,
        label_count=teacher.label_count,
        digest=f"{teacher.digest} {teacher.prediction}",
    )


def seed_noise(
    seed: int, nfe: int, shape: Sequence[int], label_count: int | None
) -> tuple[Tensor, int, list[Tensor]]:
    """x_K, the label (0 where there are none) and the noises of the layers K..2 of one image."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=rng)
    label = int(torch.randint(label_count, (), generator=rng)) if label_count else 0
    return x, label, [torch.randn(shape, generator=rng) for _ in range(nfe - 1)]


def check_labels(sampler: Sampler, labels: Sequence[int] | None) -> None:
    """Refuse labels that the network does not have."""
    if labels is not None and sampler.label_count is None:
        raise HsiviError(f"{sampler.name} has no labels: leave out --labels")
    if labels is not None and not all(0 <= label < sampler.label_count for label in labels):
        raise HsiviError(f"labels of {sampler.name} lie in 0..{sampler.label_count - 1}")


@torch.inference_mode()
def draw(
    sampler: Sampler,
    seeds: Sequence[int],
    batch_size: int,
    device: str | torch.device,
    labels: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """Images of seeds, in order, as batches uint8 [B, H, W, C] on the CPU, by exactly `sampler.nfe`
    network calls each.

    labels  one a seed; by default each seed draws its own where the network has labels
    A short batch is padded, so that every image is computed at the same batch shape.
    """
    check_labels(sampler, labels)
    log_scale = sampler.log_scale.to(device)
    for start in range(0, len(seeds), batch_size):
        part = list(seeds[start : start + batch_size])
        drawn = [seed_noise(seed, sampler.nfe, sampler.shape, sampler.label_count) for seed in part]
        own = (
            [label for _, label, _ in drawn]
            if labels is None
            else list(labels[start : start + batch_size])
        )
        short = batch_size - len(part)
        drawn += drawn[-1:] * short
        own += own[-1:] * short
        x = torch.stack([x for x, _, _ in drawn]).to(device)
        noise = [
            torch.stack(step).to(device) for step in zip(*(n for _, _, n in drawn), strict=True)
        ]
        given = torch.tensor(own, device=device) if sampler.label_count else None
        x = chains.sample(sampler.network, sampler.chain, x, noise, log_scale, given)
        yield to_images(x[: len(part)])


def images_of(
    path: str | Path,
    nfe: int | None,
    seeds: Sequence[int],
    batch_size: int,
    device: str | torch.device,
) -> Iterator[Tensor]:
    """Images of a run's student, as `draw` gives them."""
    sampler = student_sampler(load_student(path, device), nfe)
    return draw(sampler, seeds, min(batch_size, len(seeds)), device)
