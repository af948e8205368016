"""Words for users: the one error that they see, and counts."""

from __future__ import annotations


class HsiviError(Exception):
    """A problem the user can solve: one line that says what is wrong, what was found and what to
    do. Exit status 1.
    """


def counted(count: int | str, noun: str) -> str:
    """1 call, 4 calls."""
    return f"{count} {noun}{'s' * (str(count) != '1')}"
