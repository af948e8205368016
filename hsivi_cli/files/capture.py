"""What makes a training fast on a device: draws made ahead by a thread, and device work replayed as
CUDA graphs, which the host launches at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor


class Parcel:
    """Tensors as one buffer a dtype, to go to a device in one copy each.

    On a GPU's account a host's buffers are pinned, and the copies wait for nothing.
    """

    def __init__(self, tensors: Sequence[Tensor], pinned: bool) -> None:
        self.shapes = [(t.dtype, t.shape) for t in tensors]
        sizes = dict.fromkeys((t.dtype for t in tensors), 0)
        for tensor in tensors:
            sizes[tensor.dtype] += tensor.numel()
        self.buffers = {
            dtype: torch.empty(size, dtype=dtype, device=tensors[0].device, pin_memory=pinned)
            for dtype, size in sizes.items()
        }
        for view, tensor in zip(self.views(self.buffers), tensors, strict=True):
            view.copy_(tensor)

    def views(self, buffers: dict[torch.dtype, Tensor]) -> list[Tensor]:
        """The tensors as they lie in such buffers, here or on a device."""
        found, begun = [], dict.fromkeys(buffers, 0)
        for dtype, shape in self.shapes:
            begin = begun[dtype]
            begun[dtype] = begin + shape.numel()
            found.append(buffers[dtype][begin : begun[dtype]].view(shape))
        return found


class Ahead:
    """Does the work of rounds on a device; what a round draws has been drawn by a thread while the
    device did the one before.

    A draw is a function of the round alone, so these are the numbers that it gives anywhere. Draws
    have `tensors()`, and `like(tensors)` makes such draws of others.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.pinned = device, device.type == "cuda"
        self.pool, self.jobs = ThreadPoolExecutor(1), {}

    def __call__(self, round_: int, kind: object, draw: Callable, work: Callable) -> Tensor:
        job = self.jobs.pop(round_, None) or self.pool.submit(self.drawn, draw, round_)
        draws, parcel = job.result()
        self.jobs = {round_ + 1: self.pool.submit(self.drawn, draw, round_ + 1)}
        return self.perform(kind, lambda tensors: work(draws.like(tensors)), parcel)

    def on(self, kind: object, tensors: list[Tensor], work: Callable) -> Tensor:
        """Work of a kind on tensors that lie on the device."""
        return self.perform(kind, work, Parcel(tensors, pinned=False))

    def drawn(self, draw: Callable, round_: int) -> tuple[object, Parcel]:
        draws = draw(round_)
        return draws, Parcel(draws.tensors(), self.pinned)

    def perform(self, kind: object, work: Callable[[list[Tensor]], Tensor], parcel: Parcel):
        """Work on what has come to the device."""
        there = {k: b.to(self.device, non_blocking=True) for k, b in parcel.buffers.items()}
        return work(parcel.views(there))

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)


class Captured(Ahead):
    """The same, each kind of work for the first time step by step and from the second on replayed
    as one CUDA graph, which the host launches at once.

    All that the work reads or writes beside its draws must stay where it is, and it may not wait
    for the device. Where a capture fails, a line says so, and all is done step by step.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.graphs, self.done, self.failed, self.memory = {}, set(), False, None
        # what is captured must have run on the stream of the capture before
        torch.cuda.synchronize(device)
        torch.cuda.set_stream(stream_of(device))

    def perform(self, kind: object, work: Callable[[list[Tensor]], Tensor], parcel: Parcel):
        if kind in self.done and kind not in self.graphs and not self.failed:
            self.capture(kind, work, parcel)
        self.done.add(kind)
        if kind not in self.graphs:
            return super().perform(kind, work, parcel)
        graph, there, found = self.graphs[kind]
        for dtype, buffer in parcel.buffers.items():
            there[dtype].copy_(buffer, non_blocking=True)
        graph.replay()
        return found.clone()  # the next graph may use its memory

    def capture(self, kind: object, work: Callable[[list[Tensor]], Tensor], parcel: Parcel):
        there = {k: torch.empty_like(b, device=self.device) for k, b in parcel.buffers.items()}
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(
                graph,
                pool=self.memory,
                stream=stream_of(self.device),
                capture_error_mode="thread_local",  # the drawing thread may take pinned memory
            ):
                found = work(parcel.views(there))
        except Exception as error:
            self.failed = True
            torch.cuda.synchronize(self.device)
            reason = " ".join(str(error).split())[:160]
            print(
                f"warning: steps are not captured as CUDA graphs ({reason}): they are slower",
                file=sys.stderr,
            )
            return
        self.memory = self.memory or graph.pool()
        self.graphs[kind] = graph, there, found


@cache
def stream_of(device: torch.device) -> torch.cuda.Stream:
    """The stream of all captures and of what leads to them."""
    return torch.cuda.Stream(device)


def performer(device: torch.device, captures: bool) -> Ahead:
    """What does a training's rounds on this device; captures only where there is CUDA."""
    return Captured(device) if captures and device.type == "cuda" else Ahead(device)
