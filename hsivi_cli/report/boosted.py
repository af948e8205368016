"""The README.md of a run of `hsivi boost`."""

from __future__ import annotations

import shlex
from pathlib import Path

from ..errors import counted


def how_to_draw(out: Path) -> str:
    """What to type with a finished run."""
    line = shlex.join(["hsivi", "boost", str(out), "--predict", "NEW.csv", "--out", "OUT.csv"])
    return f"draw for other rows:  {line}"


def card(info: dict, out: Path) -> str:
    """The README.md of a run. `info` is its boost.json."""
    config = info["config"]
    targets = ", ".join(column["name"] for column in info["targets"])
    words = info["targets"][0]["words"]
    kind = "regression" if words is None else "classification"
    known = f"Its classes are {', '.join(words)}. " if words else ""
    kinds = {True: "a category", False: "a number"}
    columns = "\n".join(
        f"| {column['name']} | {kinds[column['words'] is not None]} |" for column in info["inputs"]
    )
    settings = "\n".join(
        f"| {key} | {value} |" for key, value in config.items() if value is not None
    )
    return f"""---
tags: [hsivi, tabular-{kind}, lightgbm]
---
# {targets} given {counted(len(info["inputs"]), "column")}

p(y given x) by {counted(config["calls"], "layer")} of boosted trees: {info["step"]} learned from
{counted(info["rows"], "row")} of {info["table"]} by hsivi {info["hsivi"]}, in
{info["seconds"] / 60:.1f} minutes.

    {how_to_draw(out).partition(":  ")[2]}

{known}Where rows were held out, summary.json has the scores on them.
`trees/` are LightGBM's text files.

| column | what it holds |
|---|---|
{columns}

| setting | value |
|---|---|
{settings}
"""
