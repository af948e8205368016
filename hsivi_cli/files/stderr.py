"""What a person reads, on streams that may not take it."""

from __future__ import annotations

import contextlib
import os
import sys


class Patient:
    """A text file on which what cannot be said is not said: closed, full, or a pipe without a
    reader, it ends nothing.
    """

    def __init__(self, file):
        self.file = file

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # ValueError: a closed file
            self.file.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.file.flush()

    def isatty(self) -> bool:
        return not self.file.closed and self.file.isatty()

    def __getattr__(self, name: str):
        return getattr(self.file, name)


def settle_streams() -> None:
    """Make stderr patient, and have stdout replace what its encoding does not know."""
    if sys.stderr is None:  # closed by who started us: or the next file would be what C writes to
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if not isinstance(sys.stderr, Patient):
        sys.stderr = Patient(sys.stderr)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
