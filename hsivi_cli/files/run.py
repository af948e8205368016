"""The one resumable run: a folder of its own, a loop that signals, clocks and crashes may end
anywhere, and logs that lose nothing.

    with holding(out):
        ...
        run = Run(out, config, trained, plan)
        for round_ in run.rounds():
            run.record(play_round(networks, config, round_))
        if run.stopped:
            run.leave(...)

A *round* is what the loop repeats, a *step* an update of what is trained; the first rounds may be
others. The same command again goes on where the last checkpoint was.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ..config import flag_of
from ..errors import HsiviError
from .checkpoint import checkpoints, last_good, restore, save_checkpoint
from .logs import append
from .progress import Bar, command_line, say
from .whole import not_finite_in, writing

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps a second process out
    fcntl = None


# ---- a folder and its earlier part ---------------------------------------------------------------


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


# ---- signals and processes -----------------------------------------------------------------------


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


@dataclass(frozen=True)
class Processes:
    """The processes that train together.

    main  whether this one writes; on the others a run only keeps step
    any   whether something is so on one of them: signals and clocks differ, and all must stop at
          the same round
    wait  for the others
    """

    main: bool = True
    any: Callable[[bool], bool] = bool
    wait: Callable[[], None] = lambda: None


# ---- the loop ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How rounds count.

    first, last  rounds: the first that there is, and the one after the last
    step         how many steps are over when so many rounds are
    due          whether a checkpoint is due when so many rounds are over
    """

    first: int
    last: int
    step: Callable[[int], int]
    due: Callable[[int], bool]


class Trained(Protocol):
    """What a run trains, as its folder sees it."""

    def tensors(self) -> dict[str, Tensor]:
        """Everything that changes in training, by name."""

    def load(self, tensors: dict[str, Tensor], state: dict) -> None:
        """The inverse of `tensors`. Refuses a state, what the verb adds, that it cannot go on
        from.
        """

    def export(self, run: Run) -> None:
        """Write what users take from the folder, and what it tells of the run."""

    def words(self, measured: dict[str, float], run: Run) -> str:
        """What the bar says of a round."""

    def fault(self) -> str | None:
        """What keeps the students that would be exported from drawing, in words."""

    def not_finite(self, what: str, round_: int, kept: str) -> HsiviError:
        """What to say of a fault of a round, and what to change in its phase.

        what  is not finite, in words
        kept  what there is to go back to
        """


CLOCKS = ("seconds", "cpu_seconds")


class Run:
    """A run's loop and what it keeps. `state` has `round` (how many are over), `seconds` and
    `cpu_seconds` (over all parts of the run), and what the verb adds; a checkpoint keeps it.

    resume  whether the folder holds an earlier part of this run
    begin   (time.monotonic(), time.process_time()) when this part began
    state   what the verb adds, as it is at first
    """

    def __init__(
        self,
        out: Path,
        config,
        trained: Trained,
        plan: Plan,
        resume: bool = False,
        processes: Processes | None = None,
        begin: tuple[float, float] | None = None,
        **state,
    ):
        self.out, self.config, self.trained, self.plan = out, config, trained, plan
        self.processes = processes or Processes()
        self.begin = begin or (time.monotonic(), time.process_time())
        self.state = {"round": plan.first, "seconds": 0.0, "cpu_seconds": 0.0} | state
        found = restore(out / "checkpoint", self.take) if resume else None
        self.resumed = found is not None
        self.state |= found or {}
        self.before = (self.state["seconds"], self.state["cpu_seconds"])
        self.kept = None  # the round of the last checkpoint
        self.stopped = 0  # the signal that ended it early, or -1 for the clock

    def take(self, tensors: dict[str, Tensor], stored: dict) -> dict:
        """The state of a checkpoint, whose tensors have been loaded."""
        found = {key: stored[key] for key in self.state if key not in CLOCKS}  # must be there
        for clock in CLOCKS:
            found[clock] = float(stored.get(clock, 0.0))
            if not math.isfinite(found[clock]):
                raise HsiviError(f"{clock} are {found[clock]}")
        self.trained.load(tensors, found)
        return found

    def add_seconds(self, seconds: float) -> None:
        """Count what an earlier run took whose result this one begins with."""
        self.before = (self.before[0] + seconds, self.before[1])
        self.state["seconds"] = self.before[0]

    @property
    def step(self) -> int:
        """Steps so far."""
        return self.plan.step(self.state["round"])

    def clock(self) -> None:
        """Bring the state's seconds up to date."""
        now = (time.monotonic(), time.process_time())
        spent = [old + b - a for old, a, b in zip(self.before, self.begin, now, strict=True)]
        self.state["seconds"], self.state["cpu_seconds"] = spent

    def rounds(self) -> Iterator[int]:
        """The rounds that are left. Each is to be recorded; then it is saved if that is due, and
        the loop ends early on a signal or when --minutes are over.
        """
        bar = Bar(
            total=self.plan.last,
            initial=self.state["round"],
            unit="round",
            disable=not self.processes.main,
        )
        with Interrupt() as interrupt, bar as self.bar:
            for round_ in range(self.state["round"], self.plan.last):
                yield round_
                over = self.config.minutes and (
                    time.monotonic() - self.begin[0] > 60 * self.config.minutes
                )
                stop = self.processes.any(bool(interrupt.number or over))
                last = round_ + 1 == self.plan.last
                if stop or last or self.plan.due(round_ + 1):
                    self.save()
                if stop and not last:
                    self.stopped = interrupt.number or -1
                    return

    def record(self, measured: dict[str, float]) -> None:
        """A round is over: count it, refuse what is not finite, write its line in metrics.jsonl
        where it made a step, and tell the bar.
        """
        before, round_ = self.step, self.state["round"]
        if not all(map(math.isfinite, measured.values())):
            raise self.trained.not_finite("the loss is not finite", round_, last_good(self.out))
        self.state["round"] += 1
        if not self.processes.main:
            return
        self.clock()
        if self.step > before:
            append(self.out / "metrics.jsonl", {"step": self.step} | measured)
        self.bar.set_description(self.trained.words(measured, self), refresh=False)
        self.bar.update()

    def keep(self) -> None:
        """A checkpoint, then the export that goes with it: a kill in between leaves an export that
        the checkpoint can mend. Neither, where a tensor is not finite or the student draws what is
        not.
        """
        tensors = self.trained.tensors()
        if wrong := not_finite_in(tensors) or self.trained.fault():
            raise self.trained.not_finite(wrong, self.state["round"] - 1, last_good(self.out))
        self.clock()
        self.kept = self.state["round"]
        save_checkpoint(self.out / "checkpoint", self.kept, tensors, self.state)
        self.trained.export(self)

    def save(self) -> None:
        """`keep`, on the process that writes, if this round is not kept yet; the others wait."""
        if self.processes.main and self.kept != self.state["round"]:
            self.keep()
        self.processes.wait()

    def leave(self, where: str) -> None:
        """Say how to go on; exit as the shell expects after a signal."""
        if self.processes.main:
            say(
                f"stopped and saved {where}; to go on, type the same line again:\n"
                f"  {command_line()}"
            )
        if self.stopped > 0:
            sys.exit(128 + self.stopped)
