"""Where networks run: devices, and the processes that accelerate launches."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import torch
from accelerate import Accelerator
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


PATIENCE = InitProcessGroupKwargs(timeout=timedelta(hours=12))  # while one process evaluates


def launched(name: str | None, **options) -> tuple[Accelerator, torch.device]:
    """The processes that train together, and this one's device: alone, the one of this name.

    options  accelerate's own
    """
    accelerator = Accelerator(cpu=name == "cpu", kwargs_handlers=[PATIENCE], **options)
    return accelerator, accelerator.device if accelerator.num_processes > 1 else pick_device(name)


def once(accelerator: Accelerator) -> Callable[[Callable], object]:
    """A function (make) -> on every process, what `make()` gives on the main one."""

    def made(make: Callable) -> object:
        return broadcast_object_list([make() if accelerator.is_main_process else None])[0]

    return made
