"""Signals that a loop sees when it can."""

from __future__ import annotations

import os
import signal
import time


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
