"""What a command is asked to do: frozen dataclasses, presets, and the one error that users see.

A field's `help` is its command-line help: cli.py makes the options from these classes, so an option, its default and its
explanation stand here and nowhere else. Nothing here imports torch, so that `hsivi --help` is instant.
"""

from __future__ import annotations

import json
import types
import typing
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path


class HsiviError(Exception):
    """A problem the user can solve: one line that says what is wrong, what was found and what to do. Exit status 1."""


def weights_folder() -> Path:
    """The embedded teacher, detector, reference and students: beside the package in a wheel, above it in a checkout."""
    inside = Path(__file__).parent / "weights"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "weights"


def option(default, help: str, **extra):
    """A dataclass field that cli.py turns into a command-line option."""
    return field(default=default, metadata={"help": help, **extra})
