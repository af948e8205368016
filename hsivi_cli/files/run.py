"""The manners of a long run: a folder of its own, signals, logs that lose nothing, lines beside a
progress bar, and the settings that a resumed one may change.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from tqdm import tqdm

from ..config import flag_of
from ..errors import HsiviError
from .checkpoint import checkpoints
from .whole import write_text, writing


def command_line() -> str:
    """What was typed, to type again."""
    return shlex.join(["hsivi", *sys.argv[1:]])


try:
    import fcntl
except ImportError:  # Windows, where nothing keeps a second process out
    fcntl = None


@contextlib.contextmanager
def holding(out: Path) -> Iterator[None]:
    """Make a run's folder and keep other processes from running in it. A folder that was made and
    stays empty goes again.
    """
    made = not out.exists()
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    lock = os.open(out, os.O_RDONLY) if fcntl else None
    try:
        try:
            if fcntl:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process
        except BlockingIOError:
            raise HsiviError(
                f"another process runs in {out}: wait for it, or choose another --out"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        if fcntl:
            os.close(lock)
        if made:
            with contextlib.suppress(OSError):  # it holds a run now
                out.rmdir()


class Interrupt:
    """Notes SIGINT, SIGTERM and SIGHUP for the loop to see between rounds; a second one acts at
    once.

    A launcher hands on the signal that the terminal has sent already: within a second it is one.
    """

    def __enter__(self):
        self.number, self.when = 0, 0.0
        self.terminals = [n for n in (1, 2) if os.isatty(n)]
        noted = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
        wanted = [n for n in noted if signal.getsignal(n) is not signal.SIG_IGN]  # nohup's wish
        self.old = {n: signal.signal(n, self.note) for n in wanted}
        return self

    def note(self, number, frame) -> None:
        if self.number and time.monotonic() - self.when > 1:
            raise KeyboardInterrupt
        self.number, self.when = number, self.when or time.monotonic()
        if number == getattr(signal, "SIGHUP", None):  # the terminal is gone: speak to no one
            for terminal in self.terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), terminal)

    def __exit__(self, *exc) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)


def append(path: Path, row: dict) -> None:
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")


def whole_lines(text: str) -> list[str]:
    """The lines of a log; one that a full disk or a power cut broke off is left out."""
    return [line for line in text.splitlines() if line.startswith("{") and line.endswith("}")]


def trim(path: Path, done: int) -> None:
    """Drop a log's lines of later steps than a checkpoint's."""
    if path.exists():
        kept = [line for line in whole_lines(path.read_text()) if json.loads(line)["step"] <= done]
        write_text(path, "".join(f"{line}\n" for line in kept))


def check_resumable(out: Path, info: dict, config) -> None:
    """Stop a run from going on with other settings than it was begun with (more --steps are none),
    and a finished one whose checkpoints are gone from beginning anew over its result.

    info    what the folder tells of the run: `config` by name, `step`, `regressed`
    config  a dataclass of options; those that are `run_only` may change
    """
    old = info["config"]
    for item in fields(config):
        new_value, old_value = getattr(config, item.name), old.get(item.name, item.default)
        more_steps = item.name == "steps" and new_value >= old_value
        if not item.metadata.get("run_only") and new_value != old_value and not more_steps:
            raise HsiviError(
                f"{out} was begun with {flag_of(item.name)} {old_value}, not {new_value}: use that "
                "to resume, or another --out"
            )
    done = ("step", "steps") if old.get("steps") else ("regressed", "regress_steps")
    made, wanted = info.get(done[0], 0), old.get(done[1], 0)
    if 0 < wanted <= made and not checkpoints(out / "checkpoint"):
        raise HsiviError(
            f"{out} holds a finished run of {made} steps without its checkpoint: it cannot go on; "
            "choose another --out"
        )


def say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
