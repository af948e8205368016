"""The manners of a long run: signals, logs that lose nothing, lines beside a progress bar."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

from tqdm import tqdm


def is_finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


class Interrupt:
    """Notes SIGINT and SIGTERM for the loop to see between rounds; a second one acts at once.

    A launcher hands on the signal that the terminal has sent already: within a second it is one.
    """

    def __enter__(self):
        self.number, self.when = 0, 0.0
        self.old = {n: signal.signal(n, self.note) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def note(self, number, frame) -> None:
        if self.number and time.monotonic() - self.when > 1:
            raise KeyboardInterrupt
        self.number, self.when = number, self.when or time.monotonic()

    def __exit__(self, *exc) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)


def append(path: Path, row: dict) -> None:
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")


def whole_lines(text: str) -> list[str]:
    """The lines of a log; one that a full disk or a power cut broke off is left out."""
    return [line for line in text.splitlines() if line.startswith("{") and line.endswith("}")]


def say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
