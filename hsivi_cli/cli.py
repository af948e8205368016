"""The command line: argv to a configuration to a verb. The only place that prints errors.

Options are made from the configurations' fields (config.py). A verb's module is imported when it
runs, so that help is instant.
"""

from __future__ import annotations

import errno
import importlib
import json
import sys
import types
import typing
from dataclasses import fields
from pathlib import Path

import click

from . import __version__
from .config import (
    ORIGIN,
    PRESETS,
    REVISION,
    SUBFOLDER,
    VARIANT,
    CompareConfig,
    FidConfig,
    InferConfig,
    SampleConfig,
    TrainConfig,
    check_options,
    flag_of,
    of_nfe,
)
from .errors import HsiviError


def options_of(config: type):
    """A decorator that gives a command one option for every field of `config` that has a help
    text.
    """
    hints = typing.get_type_hints(config)

    def decorate(command):
        for item in reversed(fields(config)):
            if "help" not in item.metadata:
                continue
            kind = hints[item.name]
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
                show_default=item.default is not None,
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


class Command(click.Command):
    """A verb. Text that is empty is a mistake, such as a shell variable that is not set."""

    def parse_args(self, context, args):
        rest = super().parse_args(context, args)
        for parameter in self.params:
            value = context.params.get(parameter.name)
            if value == "" or (isinstance(value, tuple) and "" in value):
                raise click.BadParameter("it is empty", context, parameter)
        return rest


class Group(click.Group):
    """Turns errors the user can act on into one line and exit status 1."""

    command_class = Command

    def invoke(self, context):
        try:
            return super().invoke(context)
        except HsiviError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(1)
        except (RuntimeError, MemoryError) as error:
            # torch's kinds, which is not loaded here: on a GPU, and on a CPU
            cuda, cpu = type(error).__name__ == "OutOfMemoryError", "can't allocate memory"
            if not (cuda or isinstance(error, MemoryError) or cpu in str(error)):
                raise
            click.echo("error: out of memory: take a smaller --batch-size or --count", err=True)
            sys.exit(1)
        except OSError as error:  # a file or folder that cannot be read, a full disk
            if error.errno in (None, errno.EPIPE):  # click ends quietly when a reader has gone
                raise
            about = f"{error.filename}: " if error.filename else ""
            click.echo(f"error: {about}{error.strerror}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo("stopped; all that was written is whole: type the same line again", err=True)
            sys.exit(130)


def verb(name: str):
    """The module of a verb, imported now."""
    return importlib.import_module(f".verbs.{name}", __package__)


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
@click.version_option(__version__, prog_name="hsivi")
def main() -> None:
    """Distil diffusion models into samplers of 1 to 15 network calls."""


def read_config(path: str) -> dict:
    """A --config file: the JSON that --dry-run prints."""
    try:
        given = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise HsiviError(f"--config {path} cannot be read as JSON: {error}") from error
    known = {item.name for item in fields(TrainConfig)} | {"teacher", "out", *ORIGIN}
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
    return given


def resolve(context: click.Context, preset: str, config: str | None, given: dict) -> dict:
    """Defaults, those of --nfe, then the preset, then the --config file, then what was typed."""
    typed = {
        name
        for name in given
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    read = read_config(config) if config else {}
    never_null = {item.name for item in fields(TrainConfig) if item.default is not None}
    for option in context.command.params:  # a file's values pass as if they were typed
        value = read.get(option.name)
        if value is not None or option.name in read.keys() & never_null:
            read[option.name] = option.type_cast_value(context, str(value))
    chosen = read | {name: given[name] for name in typed}
    told = PRESETS[preset] | chosen
    solver = chosen.get("start", "ddim") not in ("ddim", "auto")  # with times of its own
    for name in ("grid", "grid_top"):  # a preset's last time goes with its own grid
        if name not in chosen and (solver or "," in chosen.get("grid", "")):
            told.pop(name, None)
    own = of_nfe({"nfe": given["nfe"]} | told) if preset == "default" else {}
    return given | own | told


@main.command()
@click.argument("teacher", required=False)
@click.option(
    "--out",
    type=click.Path(file_okay=False),
    help="The run's folder; the same command again resumes.  [required]",
)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="default",
    show_default=True,
    help="settings to begin from: ours, the HSIVI paper's, SiD's",
)
@click.option(
    "--config", help="a JSON file of settings, as --dry-run prints; typed options win over it"
)
@click.option("--dry-run", is_flag=True, help="print the resolved configuration as JSON and stop")
@options_of_origin
@options_of(TrainConfig)
@click.pass_context
def train(context, preset, config, dry_run, **given) -> None:
    """Distil TEACHER into a student of --nfe calls.

    TEACHER is a diffusers directory or a hub id such as google/ddpm-cifar10-32; left out, the
    embedded Fashion-MNIST teacher.
    """
    chosen = resolve(context, preset, config, given)
    about = {key: chosen[key] for key in ("teacher", *ORIGIN, "out")}
    settings = TrainConfig(**{k: v for k, v in chosen.items() if k not in about})
    if dry_run:
        click.echo(json.dumps(chosen, indent=1))
        return
    if about["out"] is None:
        raise click.UsageError("Missing option '--out', the run's folder.")
    origin = {key: about[key] for key in ORIGIN}
    verb("train").run(settings, {"source": about["teacher"]} | origin, Path(about["out"]))


def checked(config):
    """The same configuration. Refuses numbers that mean nothing."""
    check_options(config)
    return config


@main.command()
@click.argument("source", metavar="RUN|TEACHER")
@options_of(SampleConfig)
def sample(**given) -> None:
    """Draw images of a student, or with --solver of a teacher. An interrupted folder is
    completed.
    """
    verb("sample").run(checked(SampleConfig(**given)))


@main.command()
@click.argument("a", required=False)
@click.argument("b", required=False, metavar="[REFERENCE]")
@options_of(FidConfig)
def fid(**given) -> None:
    """The Fréchet distance between A and REFERENCE.

    Each is a folder of images, an .npz of images or statistics, a run, or a data set such as
    cifar10-train. Without any, the shipped student of 4 calls against the embedded reference.
    """
    verb("fid").run(checked(FidConfig(**given)))


@main.command()
@click.argument("sources", nargs=-1, metavar="[RUN|TEACHER ...]")
@options_of(CompareConfig)
def compare(**given) -> None:
    """Students, tuned solvers and the teacher at equal calls, seeds and noises: who wins, and by
    how much.

    Without any, the shipped students and the best solvers: on a CPU by the numbers that were
    measured before, but for what the cache holds.
    """
    verb("compare").run(checked(CompareConfig(**given)))


@main.command()
@click.argument("target")
@click.option(
    "--out",
    type=click.Path(file_okay=False),
    required=True,
    help="The run's folder; the same command again resumes.",
)
@click.option("--dim", type=int, help="coordinates of a target of your own")
@options_of(InferConfig)
def infer(target, out, dim, **given) -> None:
    """Sample TARGET, a density, by --layers semi-implicit layers.

    TARGET is banana, two-gaussians, x-shape, checkerboard, swiss-roll, circles, 25-gaussians,
    funnel, diffusion-path, logistic-waveform, logistic-breast-cancer, logistic-digits,
    regression-diabetes, regression-abalone, or your own log density as module:callable, a torch
    function of [batch, dim] -> [batch], with --dim.
    """
    verb("infer").run(checked(InferConfig(**given)), target, dim, Path(out))


@main.command()
@click.argument("path", required=False)
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@options_of_origin
def info(path, as_json, **origin) -> None:
    """What a run, a teacher or a statistics file is; without PATH, the embedded teacher."""
    verb("info").run(path, as_json, origin)
