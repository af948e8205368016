"""Words to a person on stderr: a bar where it is a terminal, else a line every half minute."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable

from tqdm import tqdm

PAUSE = 30  # seconds between lines where stderr is no terminal
LINE = "{desc}: {n_fmt} of {total_fmt} {unit}, {elapsed} so far, {remaining} to go{postfix}"


def say(text: str) -> None:
    """A line above the bar."""
    tqdm.write(text, file=sys.stderr)


def command_line() -> str:
    """What was typed, to type again."""
    return shlex.join(["hsivi", *sys.argv[1:]])


class Bar(tqdm):
    """tqdm's bar. Into a file or a pipe it writes whole lines, the first after half a minute.

    options  tqdm's
    """

    def __init__(self, **options):
        if not sys.stderr.isatty():
            options |= {"mininterval": PAUSE, "delay": PAUSE, "miniters": 1, "bar_format": LINE}
        super().__init__(**options)

    @staticmethod
    def status_printer(file) -> Callable[[str], None]:
        """What puts the bar's text on the screen or, line by line, into the file."""
        if file.isatty():
            return tqdm.status_printer(file)
        return lambda text: file.write(f"{text}\n") if text.strip() else None
