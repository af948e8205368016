"""Packages of the extra `infer`, which may be missing."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

from ..errors import HsiviError

EXTRA = "pip install 'hsivi[infer]' first"


def quietly(name: str) -> ModuleType:
    """A module of the extra; what it has to announce when imported is not the user's concern."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ArviZ 0.23 announces 1.0
            return importlib.import_module(name)
    except ImportError as error:
        raise HsiviError(f"this needs {name} ({error}): {EXTRA}") from error
