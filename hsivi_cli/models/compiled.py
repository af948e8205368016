"""A UNet's forward pass, as it stands or compiled: fused kernels for a minute or two of compiling.

Compiled code is of one kind of call: gradients or none, weights held or trained, labels or none,
autocast or not, and a batch shape. Torch keeps eight; a training asks for four at most, because
times have one dtype, batches one shape, copies of a network share their code, and where no gradient
is wanted all networks are held alike.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from ..config import TrainConfig
from ..files.capture import performer
from ..files.device import enough_memory
from ..files.progress import say
from ..method.networks import Networks
from .memory import advice

Forward = Callable[..., Tensor]
# convolutions in channels last, from which inductor's own rule excepts a U-Net
OPTIONS = {"force_layout_optimization": True}
REPAID = 600.0  # seconds of network calls from which on their being faster repays the compiling


def heard_times(unet, times: Tensor) -> Tensor:
    """Times as a UNet2DModel takes them: whole ones where it looks them up."""
    return times.round().long() if isinstance(unet.time_proj, torch.nn.Embedding) else times


def forward(unet, x: Tensor, times: Tensor, labels: Tensor | None) -> Tensor:
    """A UNet2DModel's output."""
    return unet(x, heard_times(unet, times), class_labels=labels, return_dict=False)[0]


class Compiled:
    """The same forward pass compiled. Where that fails, a line says so, and it is as it was."""

    def __init__(self, backend: str = "inductor") -> None:
        self.compiled = torch.compile(
            forward, fullgraph=True, dynamic=False, backend=backend,
            options=OPTIONS if backend == "inductor" else None,
        )  # fmt: skip
        self.failed = False

    def __call__(self, unet, x: Tensor, times: Tensor, labels: Tensor | None) -> Tensor:
        if not self.failed:
            try:
                return self.compiled(unet, x, times, labels)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                self.give_up(error)
        return forward(unet, x, times, labels)

    def give_up(self, error: Exception) -> None:
        self.failed = True
        reason = " ".join(str(error).split())[:160]
        print(f"warning: networks are not compiled ({reason}): they are slower", file=sys.stderr)


@cache
def compiled(backend: str = "inductor") -> Compiled:
    """The compiled forward pass, one for all that a process trains and draws."""
    return Compiled(backend)


def chosen_forward(config: TrainConfig, teacher, rounds: int, world: int) -> Forward:
    """What --compile chooses for a training of so many rounds on so many processes."""
    on_gpu = teacher.unet.device.type == "cuda"
    if config.compile == "on" or (
        config.compile == "auto" and on_gpu and _pays(config, teacher, rounds, world)
    ):
        return compiled()
    return forward


def _pays(config: TrainConfig, teacher, rounds: int, world: int) -> bool:
    """Whether the rounds have network calls enough to repay the compiling: a few are timed."""
    device, network = teacher.unet.device, teacher.network(dtype=config.dtype)
    x = torch.zeros(batch_of(config, world) or 1, *teacher.shape, device=device)
    times, level = x.new_zeros(len(x)), x.new_full((len(x),), 0.5)
    labels = None if teacher.label_count is None else times.long()
    with torch.no_grad(), enough_memory("in timing a network call", advice(config, world)):
        for i in range(4):
            if i == 1:  # the first one is slower
                torch.cuda.synchronize(device)
                begin = time.monotonic()
            network(x, times, labels, level)
        torch.cuda.synchronize(device)
    call = (time.monotonic() - begin) / 3
    # of a round: its roll-out, then three an update and two
    calls = (3.5 * config.fake_updates + 6) * config.accumulate
    planned = 60 * config.minutes if config.minutes else math.inf
    return min(rounds * calls * call, planned) > REPAID


def batch_of(config: TrainConfig, world: int) -> int:
    """Samples that pass through a network at once, 0 where a part has less than one."""
    return config.batch_size // world // config.accumulate


def rehearse(networks: Networks, config: TrainConfig, compiled: Compiled) -> float:
    """Have all that a training calls compiled before it begins, for one shape of batches. Returns
    seconds.
    """
    begin = time.monotonic()
    networks.batch_shape = batch_of(config, networks.shard.world) or None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of functions that diffusers caches
            _call_all(networks, config)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of a backward pass, which is compiled on its own
        compiled.give_up(error)
    if compiled.failed:
        networks.batch_shape = None
    for optimizer in (networks.student_optimizer, networks.fake_optimizer):
        optimizer.zero_grad()
    for low in (networks.student_low, networks.fake_low):
        low.renew()
    return time.monotonic() - begin


def _call_all(networks: Networks, config: TrainConfig) -> None:
    size, device = networks.batch_shape or 1, networks.device
    x = torch.zeros(size, *networks.shape, device=device)
    times, level = x.new_zeros(size), x.new_full((size,), 0.5)
    labels = None if networks.label_count is None else times.long()
    rows = times.long() if networks.layer_conditioned else labels
    networks.train_student(False)
    with torch.no_grad():
        networks.student_eps(x, times, labels, level)
    networks.train_student(True)
    networks.student_eps(x, times, labels, level).sum().backward()
    networks.train_fake_score(True)
    networks.fake_eps(x, times, rows, level.double()).sum().backward()
    networks.train_fake_score(False)
    through = config.objective == "score-matching"
    with torch.set_grad_enabled(through):
        x.requires_grad_(through)
        f_eps = networks.fake_eps(x, times, rows, level.double())
        teacher_eps = networks.teacher_eps(x, times, labels, level.double())
    if through:
        (f_eps + teacher_eps).sum().backward()


@contextmanager
def quick(
    networks: Networks, config: TrainConfig, forward: Forward, main: bool = True
) -> Iterator[None]:
    """Rounds as fast as the device can: compiled first where that is chosen, drawn ahead, and
    captured as CUDA graphs where one process trains.
    """
    if isinstance(forward, Compiled):
        if main:
            say("compiling the networks: a minute or two")
        with enough_memory("in compiling the networks", advice(config, networks.shard.world)):
            seconds = rehearse(networks, config, forward)
        if main:
            say(f"compiled in {seconds:.0f} s")
    networks.perform = performer(
        networks.device, config.compile != "off" and networks.shard.world == 1
    )
    try:
        yield
    finally:
        networks.perform.close()
