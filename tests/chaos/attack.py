"""Commands in forked children, killed before their n-th write or at a random moment.

A child begins with all modules imported, so a try takes a fraction of a second.
"""

import os
import random
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from hsivi_cli.cli import main
from hsivi_cli.files.whole import LEFT
from hsivi_cli.verbs import infer, sample, train  # noqa: F401 so that no child loads them

# what audit events call: os.replace is os.rename
WRITES = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def writes_below(folder: Path, event: str, arguments: tuple) -> bool:
    """Whether an audit event is about to change something below a folder."""
    if event not in WRITES or not isinstance(arguments[0], str | bytes | os.PathLike):
        return False
    if event == "open" and not (arguments[2] or 0) & WRITING:
        return False
    return os.fsdecode(arguments[0]).startswith(str(folder))


def begin(arguments: list, folder: Path, kill_before: int | None, count: Path) -> int:
    """Start `hsivi ARGUMENTS` in a child, which kills itself before its n-th write below the folder
    and leaves the number of its writes in `count`. Returns its process id.
    """
    if pid := os.fork():
        return pid
    code = 70  # as of a bug
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115
        writes = 0

        def hook(event, found):
            nonlocal writes
            if writes_below(folder, event, found):
                writes += 1
                if writes == kill_before:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            main([str(word) for word in arguments])
        except SystemExit as end:
            code = end.code or 0
        count.write_text(str(writes))
    finally:
        os._exit(code)


def status(pid: int) -> int:
    """How a child ended: its exit status, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def half_written(folder: Path) -> list[Path]:
    """What lies below a folder under a temporary name."""
    return [path for path in folder.rglob("*") if LEFT.fullmatch(path.name)]


@dataclass
class Tally:
    """What a series of tries came to."""

    tries: int = 0
    killed: int = 0
    half_written: int = 0  # of the killed: something temporary was left
    survived: int = 0
    faults: list[str] = field(default_factory=list)

    def row(self, name: str) -> str:
        cells = (name, self.tries, self.killed, self.half_written, self.survived)
        return "| " + " | ".join(map(str, cells)) + " |"


HEAD = "| attack | tries | kills | with a file half written | survived |\n|---|---|---|---|---|"


def attack(command, result, folder: Path, tries: int, seed: int, moments: bool) -> Tally:
    """Run a command undisturbed; then kill it, twice in a try, and let it end; compare results.

    command  (out) -> the words of a command that writes to `out`
    result   (out) -> what must be the same
    moments  kill at random moments, else before random writes
    """
    draw, tally, count = random.Random(seed), Tally(), folder / "count"
    whole, began = folder / "whole", time.monotonic()
    assert status(begin(command(whole), whole, None, count)) == 0
    seconds, writes, expected = time.monotonic() - began, int(count.read_text()), result(whole)
    for number in range(tries):
        out, told = folder / f"{number}", []
        for _ in range(2):
            before = None if moments else draw.randint(1, writes)
            pid = begin(command(out), out, before, count)
            if moments:
                wait = draw.uniform(0, seconds)
                time.sleep(wait)
                os.kill(pid, signal.SIGKILL)
            told.append(f"{wait:.3f} s" if moments else f"write {before}")
            tally.killed += status(pid) == -signal.SIGKILL
            tally.half_written += bool(out.exists() and half_written(out))
        tally.tries += 1
        code = status(begin(command(out), out, None, count))
        if code == 0 and result(out) == expected and not half_written(out):
            tally.survived += 1
        else:
            why = f"exit {code}" if code else "half written" if half_written(out) else "differs"
            tally.faults.append(f"try {number}, killed at {', '.join(told)}: {why}")
    return tally
