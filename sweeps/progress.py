"""Progress of a sweep on standard error: a live line on a terminal, plain lines elsewhere.

Time left counts a cell as a constant (start, compilation) and its work (Gflops of training and sampling, one multiply-add a flop) at a
rate, both fitted to the cells that have finished; before there are any, the rate of the work done so far.
"""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from dit.design import flops
from dit.design.config import RunConfig
from dit.duration import duration
from dit.hosts.terminal import steer

PLAIN_EVERY_S = 10.0


def work(run: RunConfig) -> float:
    """Gflops of a whole cell: its training, and the samples of its evaluations."""
    return flops.train_gflops(run, run.steps) + flops.scoring_gflops(run)


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
        self._began: dict[str, float] = {}
        self._spent: list[tuple[float, float]] = []
        self._workers = 1
        self._under_way: dict[int | str, tuple[str, str]] = {}
        self._started = self._printed = time.monotonic()
        self._live = self._stream.isatty()

    def __call__(self, event: dict[str, Any]) -> None:
        """Take one event, see `sweeps.engine.Listener`."""
        match event["event"]:
            case "started":
                self._under_way[event["worker"]] = (event["run"], "starting")
                self._began[event["run"]] = time.monotonic()
                self._workers = max(self._workers, len(self._under_way))
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
        text = f"step {event['step']} of {run.steps}, loss {event['loss']:.4f}"
        self._under_way[event["worker"]] = (run.run, text)

    def _finish(self, event: dict[str, Any]) -> None:
        self._under_way.pop(event["worker"], None)
        self._fraction[event["run"]] = 1.0
        began = self._began.pop(event["run"], None)
        if event["state"] == "done":
            self._finished += 1
            if began is not None:
                self._spent.append((work(self._runs[event["run"]]), time.monotonic() - began))
        elif event["state"] == "failed":
            self._failed += 1
        if not self._live:
            self._line(f"{event['run']} {event['state']}; {self._summary()}")

    def _message(self, event: dict[str, Any]) -> None:
        text = event.get("reason") or event.get("message") or f"worker died ({event.get('how')}), resuming the cell"
        self._clear()
        self._line(f"{event['event']}: {event.get('run', '')}: {text}")

    def time_left(self) -> float | None:
        """Seconds until the last cell ends; None before any work is done."""
        now = time.monotonic()
        remaining = {name: 1.0 - self._fraction.get(name, 0.0) for name in self._runs}
        if self._spent:
            constant, rate = fit(self._spent)
            seconds = sum(part * (constant + rate * work(self._runs[name])) for name, part in remaining.items())
            return seconds / max(1, min(self._workers, sum(part > 0 for part in remaining.values())))
        total = sum(work(run) for run in self._runs.values())
        done = total - sum(work(self._runs[name]) * part for name, part in remaining.items())
        return (now - self._started) * (total - done) / done if done > 0 else None

    def _summary(self) -> str:
        left = self.time_left()
        failed = f", {self._failed} failed" if self._failed else ""
        remaining = "time left unknown" if left is None else f"about {duration(left)} left"
        return f"{self._finished} of {self._total} cells done{failed}, {remaining}"

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
            steer(self._stream, "\r\x1b[K")

    def _line(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Leave the terminal clean."""
        self._clear()
        self._stream.flush()


def fit(spent: list[tuple[float, float]]) -> tuple[float, float]:
    """Seconds per cell and per Gflop, neither negative, by least squares over (Gflops, seconds)."""
    n = len(spent)
    x, y = (sum(pair[k] for pair in spent) / n for k in (0, 1))
    spread = sum((a - x) ** 2 for a, _ in spent)
    slope = sum((a - x) * (b - y) for a, b in spent) / spread if spread > 0 else y / x
    slope = min(max(slope, 0.0), y / x)
    return y - slope * x, slope


def _columns() -> int:
    import shutil

    return shutil.get_terminal_size().columns
