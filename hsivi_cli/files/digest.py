"""One hash for all that is told apart by its content."""

from __future__ import annotations

import hashlib

from torch import Tensor


def digest(*parts: str | bytes | Tensor) -> str:
    """SHA-256 of the parts joined, 64 hexadecimal digits; a tensor counts by its numbers' bytes,
    not by its name, shape or file.
    """
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            part = part.detach().cpu().contiguous().numpy().tobytes()
        found.update(part.encode() if isinstance(part, str) else part)
    return found.hexdigest()
