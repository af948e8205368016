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

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ..errors import HsiviError
from .checkpoint import go_back, last_good, restore, save_checkpoint
from .interrupt import Interrupt
from .logs import append
from .progress import Bar, command_line, say
from .whole import is_finite, not_finite_in

# ---- processes -----------------------------------------------------------------------------------


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


# of a state: what earlier versions' may lack, and what it then is
CLOCKS = ("seconds", "cpu_seconds")
MAY_LACK = {"seconds": 0.0, "cpu_seconds": 0.0, "skipped": [], "rollbacks": 0}

WINDOW, MOST = 100, 3  # rounds, and how many of them may be skipped
MOST_ROLLBACKS = 5
RATES = ("student_rate", "fake_rate", "regress_rate")


class RolledBack(Exception):
    """A run has gone back to a checkpoint: open it again, as a new process would."""


def until_done(part: Callable[[tuple[float, float]], None], begin: tuple[float, float]) -> None:
    """Call part(begin), and with the clocks of then again as often as its run rolls back."""
    while True:
        try:
            return part(begin)
        except RolledBack:
            begin = (time.monotonic(), time.process_time())


def slowed(rollbacks: int) -> float:
    """What rates are multiplied by after so many returns."""
    return 0.5**rollbacks


class Run:
    """A run's loop and what it keeps. `state` has `round` (how many are over), `seconds` and
    `cpu_seconds` (over all parts of the run), `skipped` (those of the last WINDOW rounds that were
    not finite), `rollbacks`, and what the verb adds; a checkpoint keeps it.

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
        self.state = {"round": plan.first} | MAY_LACK | state
        found = restore(out / "checkpoint", self.take) if resume else None
        self.resumed = found is not None
        self.state |= found or {}
        self.before = (self.state["seconds"], self.state["cpu_seconds"])
        self.kept = None  # the round of the last checkpoint
        self.stopped = 0  # the signal that ended it early, or -1 for the clock

    def take(self, tensors: dict[str, Tensor], stored: dict) -> dict:
        """The state of a checkpoint, whose tensors have been loaded."""
        found = {key: (MAY_LACK | stored)[key] for key in self.state}
        for clock in CLOCKS:
            if not (is_finite(found[clock]) and found[clock] >= 0):
                raise HsiviError(f"{clock} are {found[clock]}")
        skipped, rollbacks = found["skipped"], found["rollbacks"]
        if not isinstance(skipped, list) or not all(type(one) is int for one in skipped):
            raise HsiviError(f"skipped are {skipped}")
        if type(rollbacks) is not int or rollbacks not in range(MOST_ROLLBACKS + 1):
            raise HsiviError(f"rollbacks are {rollbacks}")
        self.trained.load(tensors, found)
        return found

    def add_seconds(self, seconds: float) -> None:
        """Count what an earlier run took whose result this one begins with."""
        self.before = (self.before[0] + seconds, self.before[1])
        self.state["seconds"] = self.before[0]

    @property
    def settings(self):
        """The configuration, its rates half of what they were with every return."""
        if not self.state["rollbacks"]:
            return self.config
        rates = {name: getattr(self.config, name, None) for name in RATES}
        half = slowed(self.state["rollbacks"])
        return replace(self.config, **{n: half * rate for n, rate in rates.items() if rate})

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
            unit="rounds",
            disable=not self.processes.main,
        )
        with Interrupt() as interrupt, bar as self.bar:
            due = False
            for round_ in range(self.state["round"], self.plan.last):
                yield round_
                over = self.config.minutes and (
                    time.monotonic() - self.begin[0] > 60 * self.config.minutes
                )
                stop = self.processes.any(bool(interrupt.number or over))
                last = round_ + 1 == self.plan.last
                due = due or stop or last or self.plan.due(round_ + 1)
                skipped = self.state["skipped"][-2:]
                if last and skipped == [round_ - 1, round_]:
                    raise self.lost("the loss is not finite", round_)
                if skipped[-1:] == [round_] and not last:
                    continue  # what may never be finite again is not kept
                if due:
                    self.save()
                    due = False
                if stop and not last:
                    self.stopped = interrupt.number or -1
                    return

    def record(self, measured: dict[str, float]) -> None:
        """A round is over: count it, write its line in metrics.jsonl where it made a step, and tell
        the bar. One that is not finite is skipped, where --on-nan allows it.
        """
        before, bad = self.step, [n for n, value in measured.items() if not math.isfinite(value)]
        if bad:
            self.skip(bad)
        self.state["round"] += 1
        if not self.processes.main:
            return
        self.clock()
        if self.step > before:
            row = {"skipped": bad} if bad else measured
            append(self.out / "metrics.jsonl", {"step": self.step} | row)
        if not bad:
            self.bar.set_description(self.trained.words(measured, self), refresh=False)
        self.bar.update()

    def skip(self, bad: list[str]) -> None:
        """Go on after a round of which these measurements are not finite: its updates of gradients
        that are not have made no step. Raises what ends the run where that is not allowed.
        """
        round_ = self.state["round"]
        skipped = [one for one in self.state["skipped"] if one > round_ - WINDOW] + [round_]
        if self.config.on_nan != "skip" or len(skipped) > MOST:
            raise self.lost("the loss is not finite", round_)
        self.state["skipped"] = skipped
        if self.processes.main:
            step = self.plan.step(round_ + 1)
            say(
                f"warning: {', '.join(bad)} not finite "
                + (f"at step {step}" if step else "before the first step")
                + f": skipped, {len(skipped)} of the {MOST} that may be in {WINDOW} rounds"
            )

    def lost(self, what: str, round_: int) -> Exception:
        """What a state that is not finite ends in: a line for the user or, with --on-nan rollback,
        another beginning at the checkpoint before the last one, at half the rates.
        """
        rollbacks, back = self.state["rollbacks"] + 1, None
        if self.config.on_nan == "rollback" and rollbacks <= MOST_ROLLBACKS and self.processes.main:
            self.clock()
            change = {clock: self.state[clock] for clock in CLOCKS} | {"rollbacks": rollbacks}
            back = go_back(self.out / "checkpoint", change)
        if not self.processes.any(back is not None):
            return self.trained.not_finite(what, round_, last_good(self.out))
        if self.processes.main:
            say(f"warning: {what}: back to {back.name}, at rates times {slowed(rollbacks):g}")
        return RolledBack()

    def broken(self) -> str | None:
        """What is not finite in the state of now, or in what its students draw."""
        return not_finite_in(self.trained.tensors()) or self.trained.fault()

    def keep(self) -> None:
        """A checkpoint, then the export that goes with it: a kill in between leaves an export that
        the checkpoint can mend.
        """
        if wrong := self.broken():
            raise self.trained.not_finite(wrong, self.state["round"] - 1, last_good(self.out))
        self.clock()
        self.kept = self.state["round"]
        save_checkpoint(self.out / "checkpoint", self.kept, self.trained.tensors(), self.state)
        self.trained.export(self)

    def save(self) -> None:
        """`keep`, on the process that writes, if this round is not kept yet; the others wait."""
        new = self.processes.main and self.kept != self.state["round"]
        wrong = self.broken() if new and self.config.on_nan == "rollback" else None
        if self.processes.any(wrong is not None):
            raise self.lost(wrong or "", self.state["round"] - 1)
        if new:
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
