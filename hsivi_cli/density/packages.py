"""Packages of the extras, which may be missing or fail when imported."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

from ..errors import HsiviError, reason_of


def quietly(name: str, extra: str = "infer") -> ModuleType:
    """A module of an extra; what it has to announce when imported is not the user's concern.

    Two packages of versions that do not fit may raise anything: that is the user's to read, not a
    bug of ours.
    """
    install = f"pip install 'hsivi[{extra}]'"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ArviZ 0.23 announces 1.0
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise HsiviError(f"this needs {name} ({error}): {install} first") from error
    except Exception as error:
        raise HsiviError(
            f"{name} cannot be imported ({reason_of(error)}): {install} in a fresh environment"
        ) from error
