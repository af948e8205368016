"""Where networks run."""

from __future__ import annotations

import torch

from ..errors import HsiviError


def pick_device(name: str | None = None) -> torch.device:
    """The device of this name, by default CUDA where there is one, else the CPU."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).item()  # which a device without numbers, meta, refuses
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise HsiviError(f"--device {name} cannot be used here: {reason}") from error
    return device
