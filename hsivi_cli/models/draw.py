"""Seeds to images in memory, from any network and chain: student, solver and many-call teacher
alike.

One seed decides all of an image's noise, drawn on the CPU, so neither batch size nor device nor the
number of processes changes it; samplers of one shape share x_K seed by seed, whatever their number
of calls.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

from ..errors import HsiviError
from ..files.device import exact_float32, once
from ..files.digest import digest
from ..files.images import to_images
from ..method.chain import Chain, Network, Noise, draw_noise, sample
from ..method.schedule import Clip
from .spacings import solver
from .student import Student
from .teacher import Teacher

TORCH_SEEDS = 2**32
USUAL_BATCH, LARGEST_BATCH = 256, 512  # images at once where nobody says how many
NOISE = 2**31  # bytes that the noises of a batch may take: many calls of large images need more
TRIAL = 4  # images by which the need of one is measured
NOISE_THREADS = 4  # that draw for a GPU
SAFE = 0.7  # of the memory that is free
CLIPPED = " clipped"  # ends the name of a solver whose x0 is kept in range


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
    """The digest of the layers and their noise scale; a top_sd of 1 and a c0 of zeros leave it as
    it was before there were others.
    """
    parts = {f.name: getattr(sampler.chain, f.name) for f in fields(Chain)}
    if parts["top_sd"] == 1:
        del parts["top_sd"]
    if not parts["c0"].any():
        del parts["c0"]
    return digest(*parts.values(), sampler.log_scale)


def student_sampler(student: Student, nfe: int | None = None, dtype: str = "float32") -> Sampler:
    nfe, model = student.budget(nfe), student.model
    return Sampler(
        name=student.name,
        kind="student",
        network=model.network(dtype=dtype, clip=model.clip),
        chain=student.chains[nfe],
        log_scale=student.log_scales[nfe],
        shape=model.shape,
        label_count=model.label_count,
        digest=digest_of_network(model, model.clip),
    )


def solver_sampler(
    teacher: Teacher,
    name: str,
    nfe: int,
    kind: str = "solver",
    dtype: str = "float32",
    clip: Clip | None = None,
) -> Sampler:
    """A training-free solver on a teacher, x0 clipped or not; kind "teacher" marks the many-call
    one that stands for the teacher itself.
    """
    return Sampler(
        name=f"{name}{CLIPPED}" if clip else name,
        kind=kind,
        network=teacher.network(dtype=dtype, clip=clip),
        chain=solver(name, nfe, teacher.scheduler, teacher.table),
        log_scale=torch.zeros(1, *[1] * len(teacher.shape)),
        shape=teacher.shape,
        label_count=teacher.label_count,
        digest=digest_of_network(teacher, clip),
    )


def digest_of_network(model: Teacher, clip: Clip | None) -> str:
    """What tells a network from another: its weights, what they predict, how x0 is clipped."""
    return f"{model.digest} {model.prediction}" + (f" {clip}" if clip else "")


def seed_noise(seed: int, nfe: int, shape: Sequence[int], label_count: int | None) -> Noise:
    """The noise of one image, as `draw_noise` draws it for a count of 1.

    Of a seed torch's generator on the CPU takes the low 32 bits; NumPy's takes all, and draws for
    the seeds above.
    """
    if seed < TORCH_SEEDS:
        return draw_noise(torch.Generator().manual_seed(seed), nfe, shape, label_count)
    draw = np.random.default_rng(seed)
    noise = [
        torch.from_numpy(draw.standard_normal((1, *shape), dtype=np.float32)) for _ in range(nfe)
    ]
    labels = torch.from_numpy(draw.integers(label_count, size=1)) if label_count else None
    return noise[0], labels, noise[1:]


def noise_of(
    seeds: Sequence[int],
    nfe: int,
    shape: Sequence[int],
    label_count: int | None,
    pinned: bool = False,
    threads: int = 1,
) -> tuple[Tensor, Tensor | None]:
    """Every image's `seed_noise` in one tensor [B, nfe, ...], x_K first, and labels [B] or None.

    pinned   for a copy to a GPU that waits for nothing
    threads  that draw: a small network on a GPU is faster than one
    """
    noise = torch.empty(len(seeds), nfe, *shape, pin_memory=pinned)
    labels = torch.zeros(len(seeds), dtype=torch.long) if label_count else None
    # torch fills by sixteens: then one call draws the same numbers as a call a layer
    whole = not label_count and math.prod(shape) % 16 == 0

    def fill(part: range) -> None:
        generator = torch.Generator()
        for i in part:
            if whole and seeds[i] < TORCH_SEEDS:
                noise[i].normal_(generator=generator.manual_seed(seeds[i]))
                continue
            x, label, rest = seed_noise(seeds[i], nfe, shape, label_count)
            torch.cat([x, *rest], out=noise[i])
            if label is not None:
                labels[i] = label

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, [range(i, len(seeds), threads) for i in range(threads)]))
    return noise, labels


def check_labels(sampler: Sampler, labels: Sequence[int] | None) -> None:
    """Refuse labels that the network does not have."""
    if labels is not None and sampler.label_count is None:
        raise HsiviError(f"{sampler.name} has no labels: leave out --labels")
    if labels is not None and not all(0 <= label < sampler.label_count for label in labels):
        raise HsiviError(f"labels of {sampler.name} lie in 0..{sampler.label_count - 1}")


def batch_that_fits(sampler: Sampler, device: torch.device) -> int:
    """Images to draw at once where nobody says how many: 256; on a GPU as many as fit, by what a
    call of a few needs; in any case no more than whose noises fit.
    """
    most = max(1, NOISE // (4 * sampler.nfe * math.prod(sampler.shape)))
    if device.type != "cuda":
        return min(USUAL_BATCH, most)
    x = torch.zeros(TRIAL, *sampler.shape, device=device)
    labels = torch.zeros(TRIAL, dtype=torch.long, device=device) if sampler.label_count else None
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    with torch.inference_mode(), exact_float32(device):
        sampler.network(x, x.new_zeros(TRIAL), labels)
    each = (torch.cuda.max_memory_allocated(device) - before) / TRIAL
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(most, fitting(each, torch.cuda.mem_get_info(device)[0] + unused))


def fitting(each: float, free: float) -> int:
    """The largest power of two, up to 512, of things that need so many bytes each and fit into the
    free ones with room to spare: one at the least.
    """
    fits = min(LARGEST_BATCH, max(1, SAFE * free / each))
    return 2 ** math.floor(math.log2(fits))


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
    log_scale, device = sampler.log_scale.to(device), torch.device(device)

    def drawn(start: int) -> tuple[Tensor, Tensor | None]:
        part = list(seeds[start : start + batch_size])
        part += part[-1:] * (batch_size - len(part))
        gpu = device.type == "cuda"
        threads = NOISE_THREADS if gpu else 1
        noise, own = noise_of(part, sampler.nfe, sampler.shape, sampler.label_count, gpu, threads)
        if labels is not None:
            chosen = list(labels[start : start + batch_size])
            own = torch.tensor(chosen + chosen[-1:] * (batch_size - len(chosen)))
        return noise, own

    with ThreadPoolExecutor(1) as pool:  # the next batch's noise is drawn beside the network
        job = pool.submit(drawn, 0)
        for start in range(0, len(seeds), batch_size):
            noise, own = (None if t is None else t.to(device, non_blocking=True)
                          for t in job.result())  # fmt: skip
            if start + batch_size < len(seeds):
                job = pool.submit(drawn, start + batch_size)
            x, *rest = (layer.contiguous() for layer in noise.unbind(1))
            with exact_float32(device):
                x = sample(sampler.network, sampler.chain, x, rest, log_scale, own)
            yield to_images(x[: len(seeds) - start])


def shard_of(
    sampler: Sampler, seeds: Sequence[int], batch_size: int | None, device: torch.device
) -> tuple[int, Iterator[Tensor]]:
    """How many images are drawn at once, and this process's shard of them, as `draw` gives them."""
    state = PartialState()
    size = min(batch_size or once(state)(lambda: batch_that_fits(sampler, device)), len(seeds))
    mine = seeds[state.process_index :: state.num_processes]
    return size, draw(sampler, mine, size, device)
