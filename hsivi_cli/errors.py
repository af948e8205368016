"""Words for users: the one error that they see, in one line, and counts."""

from __future__ import annotations


class HsiviError(Exception):
    """A problem the user can solve: one line that says what is wrong, what was found and what to
    do. Exit status 1.
    """


def reason_of(error: BaseException) -> str:
    """An error in one line: its kind, and the first line of what it says if it says anything."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def in_a_line(text: str) -> str:
    """A text that may quote anything, as what is printed in one line: all else is spelt out, such
    as line ends, and codes that command a terminal.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def counted(count: int | str, noun: str) -> str:
    """1 call, 4 calls."""
    return f"{count} {noun}{'s' * (str(count) != '1')}"
