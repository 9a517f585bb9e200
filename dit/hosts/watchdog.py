"""A deadline on every step: a process that hangs shows where, and ends.

A rank that is alive but stuck is invisible to heartbeats, and holds all the others in a collective that has no deadline. The timer is the
interpreter's own (`faulthandler`): it fires even if the thread that hangs never lets go of Python's lock.
"""

from __future__ import annotations

import faulthandler
import time

HANG_S = 1800.0
"""Seconds that one step may take in a run of several processes, the compilation of the first included."""


class Watchdog:
    """Dumps every thread's stack to standard error and ends the process with code 1, `limit_s` after it was last fed; 0 switches it off."""

    def __init__(self, limit_s: float):
        self._limit_s, self._fed = limit_s, float("-inf")

    def feed(self) -> None:
        """Tell that the run moves. Cheap: the timer is set again only once a twentieth of the limit has passed."""
        now = time.monotonic()
        if self._limit_s and now - self._fed > self._limit_s / 20:
            self._fed = now
            faulthandler.dump_traceback_later(self._limit_s, exit=True, file=2)

    def close(self) -> None:
        """Stop watching."""
        if self._limit_s:
            faulthandler.cancel_dump_traceback_later()
