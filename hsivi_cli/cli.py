"""The command line: argv to a configuration to a verb. The only place that prints errors.

A verb's module is imported when it runs, so that help is instant.
"""

from __future__ import annotations

import errno
import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from . import __version__
from .arguments import ABOUT, chosen_by, is_typed, options_of, options_of_origin
from .config import (
    BOOST_OUT,
    DRAWING,
    FOLLOWS,
    FORCE,
    ORIGIN,
    PLANNED,
    PRESETS,
    TARGETS,
    BoostConfig,
    CompareConfig,
    FidConfig,
    InferConfig,
    SampleConfig,
    TrainConfig,
    choices_in,
    flag_of,
    follows,
    settings_of,
    shown_defaults,
)
from .errors import HsiviError, in_a_line
from .files.network import go_offline, is_offline
from .files.places import check_name, name_of
from .files.stderr import settle_streams


class Command(click.Command):
    """A verb. Text that is empty is a mistake, such as a shell variable that is not set, and so is
    text that is no UTF-8: what it names might be written, but not be read again.
    """

    def get_short_help_str(self, limit=45):
        """The first line of the help, whole: click's own ends in dots where it is narrow."""
        return self.help.partition("\n")[0]

    def parse_args(self, context, args):
        rest = super().parse_args(context, args)
        for parameter in self.params:
            value = context.params.get(parameter.name)
            if value == "" or (isinstance(value, tuple) and "" in value):
                raise click.BadParameter("it is empty", context, parameter)
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str):
                    check_name(text)
        return rest


class Group(click.Group):
    """Turns errors the user can act on into one line and exit status 1."""

    command_class = Command

    def main(self, *args, **kwargs):
        settle_streams()
        return super().main(*args, **kwargs)

    def invoke(self, context):
        try:
            return super().invoke(context)
        except HsiviError as error:
            click.echo(f"error: {in_a_line(str(error))}", err=True)
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
            click.echo(f"error: {in_a_line(about)}{error.strerror}", err=True)
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
@click.option(
    "--offline", is_flag=True, help="read nothing from the network; so does HF_HUB_OFFLINE=1"
)
def main(offline: bool) -> None:
    """Distil diffusion models into samplers of 1 to 15 network calls."""
    if offline or is_offline():
        go_offline()


@main.command()
@click.argument("teacher", required=False)
@click.option(
    "--out",
    type=click.Path(file_okay=False),
    help="the run's folder, where the same command again resumes; default: runs/NAME-NFE",
)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="default",
    show_default=True,
    help="settings to begin from: ours, the HSIVI paper's, SiD's, SiDA's",
)
@click.option(
    "--config", help="a JSON file of settings, as --dry-run prints; typed options win over it"
)
@click.option(
    "--dry-run", is_flag=True, help="print as JSON what differs from the defaults, and stop"
)
@options_of_origin
@options_of(TrainConfig, shown_defaults())
@click.pass_context
def train(context, preset, config, dry_run, **given) -> None:
    """Distil TEACHER into a student of --nfe calls.

    TEACHER is a diffusers directory or a hub id such as google/ddpm-cifar10-32; left out, the
    embedded Fashion-MNIST teacher. docs/options.md has the defaults that depend on --nfe.
    """
    chosen, own = chosen_by(context, preset, config, given)
    about = {key: chosen.pop(key, None) for key in ABOUT}
    settings = TrainConfig(**settings_of(chosen, by_nfe=preset == "default"))
    if dry_run:
        told = {key: value for key, value in about.items() if value is not None}
        click.echo(json.dumps(told | choices_in(asdict(settings), chosen), indent=1))
        return
    calls = "-".join(map(str, settings.budgets))
    out = about["out"] or f"runs/{name_of(about['teacher'])}-{calls}"
    origin = {key: about[key] for key in ORIGIN}
    plans = PLANNED - own if settings.minutes and "steps" not in own else set()
    plans = {name for name in plans if getattr(settings, name)}
    if preset == "default" and follows(chosen):
        plans.add(FOLLOWS)
    verb("train").run(settings, {"source": about["teacher"]} | origin, Path(out), plans)


@main.command()
@click.argument("source", required=False, metavar="[RUN|TEACHER]")
@options_of(SampleConfig)
def sample(**given) -> None:
    """Draw images of a student, or of a teacher by a solver.

    Left out, it is the shipped student of --nfe calls, by default 4. An interrupted folder is
    completed.
    """
    verb("sample").run(SampleConfig(**given))


@main.command()
@click.argument("a", required=False)
@click.argument("b", required=False, metavar="[REFERENCE]")
@options_of(FidConfig)
def fid(**given) -> None:
    """The Fréchet distance between A and REFERENCE.

    Each is a folder of images, an .npz of images or statistics, a run, or a data set such as
    cifar10-train. Without any, the shipped student of 4 calls against the embedded reference.
    """
    verb("fid").run(FidConfig(**given))


@main.command()
@click.argument("sources", nargs=-1, metavar="[RUN|TEACHER ...]")
@options_of(CompareConfig)
def compare(**given) -> None:
    """Set students, tuned solvers and the teacher side by side.

    All at equal calls, seeds and noises: who wins, and by how much. Without any, the shipped
    students and the best solvers: on a CPU by the numbers that were measured before, but for what
    the cache holds.
    """
    verb("compare").run(CompareConfig(**given))


DENSITIES = f"{', '.join(TARGETS)}, or your own log density as module:callable with --dim"
INFER = f"""Sample TARGET, a density, by --layers semi-implicit layers.

TARGET is {DENSITIES}: a torch function of [batch, dim] -> [batch].
"""


@main.command(help=INFER)
@click.argument("target", required=False, metavar="TARGET")
@click.option(
    "--out",
    type=click.Path(file_okay=False),
    help="the run's folder, where the same command again resumes; default: runs/TARGET-LAYERS",
)
@click.option("--dim", type=int, help="coordinates of a target of your own")
@options_of(InferConfig)
def infer(target, out, dim, **given) -> None:
    if target is None:
        raise click.UsageError(f"Missing argument 'TARGET': {DENSITIES}.")
    config = InferConfig(**given)
    out = out or f"runs/{target.replace(':', '-')}-{config.layers}"
    verb("infer").run(config, target, dim, Path(out))


@main.command()
@click.argument("source", metavar="TABLE.csv|RUN")
@click.option("--target", multiple=True, help="the column to learn; once more for each further one")
@click.option("--out", help=BOOST_OUT)
@click.option("--force", is_flag=True, help=FORCE)
@options_of(BoostConfig)
@click.pass_context
def boost(context, source, target, out, force, **given) -> None:
    """Learn p(target | other columns) by boosted trees, and draw.

    TABLE.csv is learned from; a RUN of it draws with --predict.
    """
    config = BoostConfig(**given)
    if config.predict is None:
        if not target:
            raise click.UsageError("Missing option '--target' of a table, or '--predict' of a run.")
        for name in ("draws", "force"):
            if is_typed(context, name):
                raise click.UsageError(f"{flag_of(name)} is for --predict.")
        place = Path(out or f"runs/{Path(source).stem}-{config.calls}")
        return verb("boost").run(config, Path(source), target, place)
    for name in {"target", *given} - {*DRAWING}:
        if is_typed(context, name):
            raise click.UsageError(f"{flag_of(name)} is for learning; --predict draws.")
    verb("boost").predict(config, Path(source), Path(out) if out else None, force)


@main.command()
@click.argument("path", required=False)
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@options_of_origin
def info(path, as_json, **origin) -> None:
    """What a run, a teacher, images or a statistics file is.

    Images lie in a folder or an .npz file. Without PATH, the embedded teacher and what else comes
    with hsivi.
    """
    verb("info").run(path, as_json, origin)
