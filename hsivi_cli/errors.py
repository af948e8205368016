"""The one error that users see."""

from __future__ import annotations


class HsiviError(Exception):
    """A problem the user can solve: one line that says what is wrong, what was found and what to
    do. Exit status 1.
    """
