"""What is read from the network, and whether it may be.

A teacher by its hub id, pytorch-fid's Inception weights and torchvision's data sets, each only when
it is named and not here already. HF_HUB_OFFLINE=1 or `hsivi --offline` forbids all three. All that
is sent is what `train --log-with wandb` logs, which then stays here.
"""

from __future__ import annotations

import os

VARIABLE = "HF_HUB_OFFLINE"  # the hub's own
FORBIDDEN = f"--offline, or {VARIABLE}, forbids to fetch it"


def is_offline() -> bool:
    """Whether nothing may be read from the network."""
    return os.environ.get(VARIABLE, "").upper() in ("1", "ON", "YES", "TRUE")


def go_offline() -> None:
    """Forbid it to this process and to the hub's and wandb's clients, which look when they are
    first used.
    """
    os.environ[VARIABLE] = "1"
    os.environ["WANDB_MODE"] = "offline"  # it writes below ./wandb, for `wandb sync`
