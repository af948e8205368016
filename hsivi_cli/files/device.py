"""Where networks run: devices, and the processes that accelerate launches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list

from ..errors import HsiviError, reason_of


def pick_device(name: str | None = None) -> torch.device:
    """The device of this name, by default CUDA where there is one, else the CPU."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).item()  # which a device without numbers, meta, refuses
    except (RuntimeError, AssertionError) as error:
        raise HsiviError(f"--device {name} cannot be used here: {reason_of(error)}") from error
    return device


def pick_dtype(name: str, device: torch.device) -> str:
    """The precision of this name; auto is bfloat16 on a GPU that has it, else float32."""
    if name != "auto":
        return name
    has = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bfloat16" if has else "float32"


def check_processes(count: int, batch_size: int) -> None:
    """Refuse so many processes that a training's batches or rounds do not divide over them."""
    if batch_size % count:
        raise HsiviError(f"--batch-size {batch_size} does not divide over {count} processes")
    if 8 % count:
        raise HsiviError(f"{count} processes: a round's chains divide over 1, 2, 4 or 8 of them")


PATIENCE = InitProcessGroupKwargs(timeout=timedelta(hours=12))  # while one process evaluates


def launched(name: str | None, **options) -> tuple[Accelerator, torch.device]:
    """The processes that train together, and this one's device: alone, the one of this name.

    options  accelerate's own
    """
    accelerator = Accelerator(cpu=name == "cpu", kwargs_handlers=[PATIENCE], **options)
    return accelerator, accelerator.device if accelerator.num_processes > 1 else pick_device(name)


def drawing(name: str | None = None) -> tuple[PartialState, torch.device]:
    """The processes that draw together, and this one's device: alone, the one of this name."""
    state = PartialState(cpu=name == "cpu")
    return state, state.device if state.num_processes > 1 else pick_device(name)


def once(accelerator: Accelerator | PartialState) -> Callable[[Callable], object]:
    """A function (make) -> on every process, what `make()` gives on the main one."""

    def made(make: Callable) -> object:
        return broadcast_object_list([make() if accelerator.is_main_process else None])[0]

    return made


@contextmanager
def enough_memory(what: str, advice: str) -> Iterator[None]:
    """Work that says in one line what there was no memory for, and which option helps there."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        full = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not full and "can't allocate memory" not in str(error):  # a CPU's words
            raise
        raise HsiviError(f"out of memory {what}: {advice}") from error


def smaller_batch(size: int) -> str:
    """What helps where images are drawn and seen so many at once."""
    if size == 1:
        return "not one image fits; give another --device"
    return f"--batch-size {size // 2} halves what they need"


@contextmanager
def exact_float32(device: str | torch.device) -> Iterator[None]:
    """Full float32, whatever the caller has set: no autocast, no TF32, whose 10 bits move an FID
    and the images of a seed.
    """
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
