"""What was typed: options made from the configurations' fields, and the settings of a training that
a preset, a --config file and the command line together choose.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Set
from dataclasses import fields
from pathlib import Path

import click

from .config import (
    ORIGIN,
    PRESETS,
    REVISION,
    SUBFOLDER,
    VARIANT,
    TrainConfig,
    flag_of,
    option_fields,
    parse_numbers,
    pinned,
)
from .errors import HsiviError
from .files.places import check_name

ABOUT = ("teacher", "out", *ORIGIN)  # of a training: what is no setting


def options_of(config: type, shown: dict[str, str] | None = None):
    """A decorator that gives a command one option for every field of `config` that has a help
    text.

    shown  what --help says of defaults that are not the fields' own, by name
    """
    shown = shown or {}
    hints = typing.get_type_hints(config)

    def decorate(command):
        for item in reversed(option_fields(config)):
            kind = str if "word" in item.metadata else hints[item.name]
            if isinstance(kind, types.UnionType):
                kind = next(k for k in typing.get_args(kind) if k is not types.NoneType)
            extra = (
                {"is_flag": True}
                if kind is bool
                else {
                    "type": click.Choice(item.metadata["choices"])
                    if "choices" in item.metadata
                    else kind
                }
            )
            command = click.option(
                flag_of(item.name),
                item.name,
                default=item.default,
                show_default=shown.get(item.name, item.default is not None),
                help=item.metadata["help"],
                **extra,
            )(command)
        return command

    return decorate


def options_of_origin(command):
    """Which of what lies at a teacher's name."""
    for name, text in (("subfolder", SUBFOLDER), ("variant", VARIANT), ("revision", REVISION)):
        command = click.option(flag_of(name), help=text)(command)
    return command


def read_config(path: str) -> dict:
    """A --config file: JSON such as --dry-run prints."""
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise HsiviError(f"--config {path} cannot be read as JSON: {error}") from error
    known = {item.name for item in fields(TrainConfig)} | {*ABOUT}
    if not isinstance(given, dict) or not given.keys() <= known:
        unknown = (
            sorted(given.keys() - known) if isinstance(given, dict) else [type(given).__name__]
        )
        raise HsiviError(
            f"--config {path} holds {', '.join(unknown)}, which train does not know; --dry-run "
            "prints what it does"
        )
    for name, value in given.items():
        if value == "":
            raise HsiviError(f"--config {path}: {name} is empty; leave it out, or say null")
        if isinstance(value, str):
            check_name(value)
        if "\0" in str(value):
            raise HsiviError(f"--config {path}: {name} holds a zero byte, which no name has")
    return given


def is_typed(context: click.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def chosen_by(
    context: click.Context, preset: str, config: str | None, given: dict
) -> tuple[dict, Set[str]]:
    """What was chosen for a training: a preset's settings, then the --config file's, then what was
    typed. Returned with the names of what is not the preset's.
    """
    typed = {name: value for name, value in given.items() if is_typed(context, name)}
    read = read_config(config) if config else {}
    never_null = {item.name for item in fields(TrainConfig) if item.default is not None}
    for option in context.command.params:  # a file's values pass as if they were typed
        value = read.get(option.name)
        if value is not None or option.name in read.keys() & never_null:
            read[option.name] = option.type_cast_value(context, str(value))
    for part in (read, typed):
        if "nfe" in part:
            part["nfe"] = ",".join(map(str, parse_numbers(part["nfe"], "--nfe")))  # 04 is 4
    if kept := pinned(read, typed):
        now = (f"{flag_of(name)} {typed[name]}" for name in ("nfe", "steps") if name in typed)
        click.echo(
            f"warning: --config {config} was made for --nfe {read['nfe']} and keeps its "
            f"{', '.join(kept)}: leave them out of it for the defaults of {' '.join(now)}",
            err=True,
        )
    own = read | typed
    chosen = PRESETS[preset] | own
    solver = own.get("start", "ddim") not in ("ddim", "auto")  # with times of its own
    for name in ("grid", "grid_top"):  # a preset's last time goes with its own grid
        if name not in own and (solver or "," in own.get("grid", "")):
            chosen.pop(name, None)
    return chosen, own.keys()
