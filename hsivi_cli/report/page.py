"""A comparison as one HTML page; page.html beside this module is its template."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from torch import Tensor

from ..files.images import grid_png
from .plots import figure_png, panels
from .rows import WORDY, filled, ordered
from .sentences import commands, notes, verdicts

TEMPLATE = Path(__file__).with_name("page.html")


def page(
    rows: list[dict],
    grids: dict[str, Tensor],
    about: dict[str, str],
    curves: Sequence[dict] = (),
) -> str:
    """One HTML page without outside references. grids: {title: images uint8 NHWC}; about: {label:
    value} of the measurement.
    """
    head, *lines = filled(rows)
    titles = ("distance by network calls", "distance by minutes of training")
    plots = zip(titles, panels(rows, curves), strict=False)
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    return template.render(
        zip=zip,
        verdicts=verdicts(rows),
        notes=[*notes(rows), *commands(rows)],
        plots=[picture(title, figure_png([panel])) for title, panel in plots],
        columns=[{"head": name, "number": name not in WORDY} for name in head],
        rows=[
            {"kind": row["kind"], "cells": line}
            for row, line in zip(ordered(rows), lines, strict=True)
        ],
        grids=[picture(title, grid_png(images)) for title, images in grids.items()],
        about=about,
    )


def picture(title: str, png: bytes) -> dict[str, str]:
    """A picture's title and its bytes in base64, as the template puts it into the page."""
    return {"title": title, "data": base64.b64encode(png).decode()}
