"""Commands in forked children: killed before their n-th write, with a file half written or at a
random moment, on a full disk, or two at once.

A child begins with all modules imported, so a try takes a fraction of a second.
"""

import json
import os
import random
import resource
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from hsivi_cli.cli import main
from hsivi_cli.files.whole import LEFT
from hsivi_cli.verbs import boost, compare, infer, sample, train  # noqa: F401 so that no child loads them

# what audit events call: os.replace is os.rename
WRITES = ("open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.chmod")
MOVES = ("os.rename", "os.link")  # before which a temporary file is there
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def writes_below(folder: Path, event: str, arguments: tuple) -> bool:
    """Whether an audit event is about to change something below a folder."""
    if event not in WRITES or not isinstance(arguments[0], str | bytes | os.PathLike):
        return False
    if event == "open" and not (arguments[2] or 0) & WRITING:
        return False
    return os.fsdecode(arguments[0]).startswith(str(folder))


@dataclass(frozen=True)
class Harm:
    """What befalls a command.

    kill_before  the number of a write, or where `moves` of a file's move to its place, before which
                 it kills itself
    room         bytes that a file may take, beyond which writing fails as on a full disk
    """

    kill_before: int | None = None
    moves: bool = False
    room: int | None = None


def begin(arguments: list, folder: Path, count: Path, harm: Harm) -> int:
    """Start `hsivi ARGUMENTS` in a child, which leaves in `count` the numbers of its writes below
    the folder and of the moves among them. Returns its process id; its exit status is 70 where it
    ends in a traceback.
    """
    if pid := os.fork():
        return pid
    code = 70
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115
        done = {"writes": 0, "moves": 0}

        def hook(event, found):
            if writes_below(folder, event, found):
                done["writes"] += 1
                done["moves"] += event in MOVES
                counted = done["moves" if harm.moves else "writes"]
                if counted == harm.kill_before and (event in MOVES or not harm.moves):
                    os.kill(os.getpid(), signal.SIGKILL)

        if harm.room is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (harm.room, resource.RLIM_INFINITY))
        sys.addaudithook(hook)
        try:
            main([str(word) for word in arguments])
        except SystemExit as end:
            code = end.code or 0
        count.write_text(json.dumps(done))
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
    harmed: int = 0  # commands that were killed, had no room, or were refused beside another
    half_written: int = 0  # of the killed: something temporary was left
    survived: int = 0
    faults: list[str] = field(default_factory=list)

    def judge(self, told: str, code: int, same: bool, left: bool) -> None:
        """Count a try whose last command ended so."""
        self.tries += 1
        if code == 0 and same and not left:
            self.survived += 1
        else:
            why = f"exit {code}" if code else "half written" if left else "differs"
            self.faults.append(f"try {self.tries}, {told}: {why}")

    def row(self, name: str) -> str:
        cells = (name, self.tries, self.harmed, self.half_written, self.survived)
        return "| " + " | ".join(map(str, cells)) + " |"


HEAD = "| attack | tries | harmed | with a file half written | survived |\n|---|---|---|---|---|"


def undisturbed(command, result, out: Path, count: Path):
    """What a command results in, the seconds it takes, its numbers of writes and moves."""
    began = time.monotonic()
    assert status(begin(command(out), out, count, Harm())) == 0
    return result(out), time.monotonic() - began, json.loads(count.read_text())


def kills(command, result, folder: Path, tries: int, seed: int, how: str) -> Tally:
    """Run a command undisturbed; then kill it, twice in a try, and let it end; compare results.

    command  (out) -> the words of a command that writes to `out`
    result   (out) -> what must be the same
    how      "moment", or before one of the "writes" or of the "moves"
    """
    draw, tally, count = random.Random(seed), Tally(), folder / "count"
    expected, seconds, done = undisturbed(command, result, folder / "whole", count)
    for number in range(tries):
        out, told = folder / f"{number}", []
        for _ in range(2):
            wait = draw.uniform(0, seconds)
            harm = Harm() if how == "moment" else Harm(draw.randint(1, done[how]), how == "moves")
            pid = begin(command(out), out, count, harm)
            if how == "moment":
                time.sleep(wait)
                os.kill(pid, signal.SIGKILL)
            told.append(f"{wait:.3f} s" if how == "moment" else f"{harm.kill_before} of {how}")
            tally.harmed += status(pid) == -signal.SIGKILL
            tally.half_written += bool(out.exists() and half_written(out))
        code = status(begin(command(out), out, count, Harm()))
        same = code == 0 and result(out) == expected
        tally.judge(f"killed at {', '.join(told)}", code, same, bool(half_written(out)))
    return tally


def no_room(command, result, folder: Path, tries: int, seed: int, most: int, disk=None) -> Tally:
    """Run a command where there is no room for what it writes, then where there is; it ends in a
    line, never in a traceback, and then as if nothing had happened.

    most  bytes: the room is a random part of it
    disk  (folder, bytes or None) to make a disk of that size, or give it room; without it each file
          may take so many bytes
    """
    draw, tally, count = random.Random(seed), Tally(), folder / "count"
    expected, _, _ = undisturbed(command, result, folder / "whole", count)
    for number in range(tries):
        place, room = folder / f"{number}", draw.randint(0, most)
        place.mkdir()
        if disk:
            disk(place, room)
        out = place / "out"
        first = status(begin(command(out), out, count, Harm(room=None if disk else room)))
        tally.harmed += first == 1
        ended = first == 1 or (first == 0 and result(out) == expected)
        if disk:
            disk(place, None)
        code = status(begin(command(out), out, count, Harm()))
        same = code == 0 and ended and result(out) == expected
        told = f"room for {room} bytes, exit {first}"
        tally.judge(told, code, same, bool(half_written(out)))
    return tally


def together(commands: list, results: list, folder: Path, tries: int, seed: int) -> Tally:
    """Start two commands at once on one folder. Each ends well or in a line; the folder is that of
    one that ended well, and the same again ends as if it had been alone.
    """
    draw, tally, count = random.Random(seed), Tally(), folder / "count"
    expected = [
        undisturbed(*both, folder / f"whole{i}", count)[0]
        for i, both in enumerate(zip(commands, results, strict=True))
    ]
    for number in range(tries):
        out, pids, wait = folder / f"{number}", [], draw.uniform(0, 0.05)
        for command in commands:
            pids.append(begin(command(out), out, folder / f"count{len(pids)}", Harm()))
            time.sleep(wait)
        codes = [status(pid) for pid in pids]
        tally.harmed += codes.count(1)
        alike = commands[0] is commands[1]  # such may share the work
        sound = set(codes) <= {0, 1} and (0 in codes if alike else codes.count(0) == 1)
        winner = codes.index(0) if sound else 0
        code = status(begin(commands[winner](out), out, count, Harm()))
        same = sound and code == 0 and results[winner](out) == expected[winner]
        tally.judge(f"{wait:.3f} s apart, exits {codes}", code, same, bool(half_written(out)))
    return tally
