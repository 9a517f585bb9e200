"""Progress of a sweep on standard error: a live line on a terminal, plain lines elsewhere.

Time left is the work that remains (Gflops of training and sampling, one multiply-add a flop) at the rate of the work done so far.
"""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from dit import flops
from dit.config import RunConfig
from sweeps.plan import sampling_gflops

PLAIN_EVERY_S = 10.0


def work(run: RunConfig) -> float:
    """Gflops of a whole cell: its training, and the samples of its evaluations."""
    return flops.train_gflops(run, run.steps) + sampling_gflops(run)


def duration(seconds: float) -> str:
    """`4 s`, `3 min 20 s`, `2 h 05 min` or `3 d 4 h`."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    if s < 86400:
        return f"{s // 3600} h {s % 3600 // 60:02d} min"
    return f"{s // 86400} d {s % 86400 // 3600} h"


class Progress:
    """Listens to a sweep's events and tells how far it is.

    Args:
        runs: all cells of the sweep.
        done: how many of them were done before.
    """

    def __init__(self, runs: list[RunConfig], done: int, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._runs = {run.run: run for run in runs}
        self._total, self._finished, self._failed = len(runs) + done, done, 0
        self._fraction: dict[str, float] = {}
        self._first: dict[str, float] = {}
        self._under_way: dict[int, tuple[str, str]] = {}
        self._started = self._printed = time.monotonic()
        self._live = self._stream.isatty()

    def __call__(self, event: dict[str, Any]) -> None:
        """Take one event of `sweeps.local.run_cells`."""
        match event["event"]:
            case "started":
                self._under_way[event["worker"]] = (event["run"], "starting")
            case "step":
                self._step(event)
            case "score":
                self._under_way[event["worker"]] = (event["run"], f"sampling at step {event['step']}")
            case "finished":
                self._finish(event)
            case "failed" | "warning" | "died":
                self._message(event)
        self._show()

    def _step(self, event: dict[str, Any]) -> None:
        run = self._runs[event["run"]]
        self._fraction[run.run] = event["step"] / run.steps
        self._first.setdefault(run.run, self._fraction[run.run])
        text = f"step {event['step']} of {run.steps}, loss {event['loss']:.4f}"
        self._under_way[event["worker"]] = (run.run, text)

    def _finish(self, event: dict[str, Any]) -> None:
        self._under_way.pop(event["worker"], None)
        self._fraction[event["run"]] = 1.0
        if event["state"] == "done":
            self._finished += 1
        else:
            self._failed += 1
        if not self._live:
            self._line(f"{event['run']} {event['state']}; {self._summary()}")

    def _message(self, event: dict[str, Any]) -> None:
        text = event.get("reason") or event.get("message") or f"worker died (exit code {event.get('code')}), resuming the cell"
        self._clear()
        self._line(f"{event['event']}: {event.get('run', '')}: {text}")

    def time_left(self) -> float | None:
        """Seconds, from the work done so far; None before there is any."""
        done = sum(work(self._runs[name]) * fraction for name, fraction in self._fraction.items())
        total = sum(work(run) for run in self._runs.values())
        elapsed = time.monotonic() - self._started
        return elapsed * (total - done) / done if done > 0 else None

    def _summary(self) -> str:
        left = self.time_left()
        failed = f", {self._failed} failed" if self._failed else ""
        return f"{self._finished} of {self._total} cells done{failed}, {f'about {duration(left)} left' if left is not None else 'time left unknown'}"

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._printed < (0.2 if self._live else PLAIN_EVERY_S):
            return
        self._printed = now
        cells = "; ".join(f"{run.rsplit('-', 1)[0]} {text}" for run, text in self._under_way.values())
        if self._live:
            self._clear()
            self._stream.write(f"{self._summary()} | {cells}"[: _columns() - 1])
            self._stream.flush()
        else:
            self._line(f"{self._summary()} | {cells}")

    def _clear(self) -> None:
        if self._live:
            self._stream.write("\r\x1b[K")

    def _line(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Leave the terminal clean."""
        self._clear()
        self._stream.flush()


def _columns() -> int:
    import shutil

    return shutil.get_terminal_size().columns
