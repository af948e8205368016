"""Words to a person on stderr: a bar where it is a terminal, else a line every half minute."""

from __future__ import annotations

import shlex
import sys
from typing import TextIO

from tqdm import tqdm

PAUSE = 30  # seconds between lines where stderr is no terminal
LINE = "{desc}{n_fmt} of {total_fmt} {unit}, {elapsed} so far, {remaining} to go{postfix}"


def say(text: str) -> None:
    """A line above the bar."""
    tqdm.write(text, file=sys.stderr)


def command_line() -> str:
    """What was typed, to type again."""
    return shlex.join(["hsivi", *sys.argv[1:]])


class Lines:
    """A file that tqdm writes a bar to, as lines without its carriage returns."""

    def __init__(self, file: TextIO):
        self.file, self.flush = file, file.flush

    def write(self, text: str) -> None:
        if text.strip():
            self.file.write(f"{text.strip()}\n")


class Bar(tqdm):
    """tqdm's bar. Into a file or a pipe it writes whole lines, the first after half a minute.

    options  tqdm's
    """

    def __init__(self, **options):
        if not sys.stderr.isatty():
            options |= {"mininterval": PAUSE, "delay": PAUSE, "miniters": 1, "bar_format": LINE}
            options["file"] = Lines(sys.stderr)
        super().__init__(**options)
