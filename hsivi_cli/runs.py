"""The manners of a long run: signals, logs that lose nothing, lines beside a progress bar, and the
settings that a resumed one may change.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import fields
from pathlib import Path

from tqdm import tqdm

from .checkpoint import checkpoints, write_text
from .config import HsiviError


class Interrupt:
    """Notes SIGINT and SIGTERM for the loop to see between rounds; a second one acts at once.

    A launcher hands on the signal that the terminal has sent already: within a second it is one.
    """

    def __enter__(self):
        self.number, self.when = 0, 0.0
        self.old = {n: signal.signal(n, self.note) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def note(self, number, frame) -> None:
        if self.number and time.monotonic() - self.when > 1:
            raise KeyboardInterrupt
        self.number, self.when = number, self.when or time.monotonic()

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

    info    what the folder tells of the run: `config` by name, `step`
    config  a dataclass of options; those that are `run_only` may change
    """
    old = info["config"]
    for item in fields(config):
        new_value, old_value = getattr(config, item.name), old.get(item.name, item.default)
        more_steps = item.name == "steps" and new_value >= old_value
        if not item.metadata.get("run_only") and new_value != old_value and not more_steps:
            flag = "--" + item.name.replace("_", "-")
            raise HsiviError(
                f"{out} was begun with {flag} {old_value}, not {new_value}: use that to resume, "
                "or another --out"
            )
    step = info.get("step", 0)
    if 0 < old.get("steps", 0) <= step and not checkpoints(out / "checkpoint"):
        raise HsiviError(
            f"{out} holds a finished run of {step} steps without its checkpoint: it cannot go on; "
            "choose another --out"
        )


def say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
