"""The local engine: worker processes on this machine that live across cells, replaced when they die, devices divided among them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dit.design.config import RunConfig
from dit.errors import UserError
from dit.store.lease import LEASE_S, attempts, run_files
from dit.store.paths import refuse_links
from dit.store.study import run_folder
from sweeps.devices import Share, default_workers, out_of_memory_kills, shares
from sweeps.engine import GONE, PENDING, RUNNING, CellTask, CommandState, Listener, Resources, worker_command
from sweeps.engines import needs
from sweeps.queues import Queue

MAX_FAILED_STARTS = 3
GRACE_S = 60.0
"""Seconds that workers have to save their cells once they are asked to end."""

_KEPT = ("mmap_threshold=8589934592", "trim_threshold=17179869184", "top_pad=268435456", "hugetlb=1")
MALLOC = ":".join(f"glibc.malloc.{setting}" for setting in _KEPT)
"""glibc keeps the memory of a step for the next one, in huge pages. XLA on a CPU asks for its temporary memory anew at every step, and
faulting those pages in took a third of a step where it was measured. Read before a process starts; other C libraries ignore it."""


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare the engine's options."""
    group = parser.add_argument_group("engine local")
    group.add_argument("--workers", type=int, help="worker processes (default: one per processor, or one per GPU)")


def resources(args: argparse.Namespace, run: RunConfig, declared: needs.Declared | None = None) -> Resources:
    """A cell takes one worker's share of the machine."""
    return Resources()


def check(args: argparse.Namespace) -> None:
    """Refuse a number of workers that this machine cannot have."""
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers {args.workers}: expected a positive whole number")
    if args.detach:
        raise UserError(
            "--detach: expected an engine that outlives this command (--engine ray or slurm), local does not"
        )
    shares(args.workers or default_workers())


def make(folder: Path, args: argparse.Namespace, listen: Listener) -> LocalEngine:
    """The engine for the study in `folder`."""
    return LocalEngine(folder, shares(args.workers or default_workers()), listen)


class Process:
    """One worker process and the cell it has in hand."""

    def __init__(self, number: int, folder: Path, share: Share):
        self.number, self.share, self.folder = number, share, folder
        self.log = folder / "logs" / f"worker-{number}.log"
        self.failed_starts = 0
        self.start()

    def start(self) -> None:
        """Start the process, in a session of its own so that only this engine signals it."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [*worker_command(self.folder), "--cells", "-", "--events"]
        if self.share.cpus:
            command += ["--cpus", ",".join(map(str, self.share.cpus))]
        refuse_links(self.log)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={"GLIBC_TUNABLES": MALLOC, **os.environ, **self.share.environment},
            )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.ready, self.cell, self.rest = False, "", b""
        self.kills, self.ending = out_of_memory_kills(), False

    def send(self, cell: str) -> None:
        """Hand over a cell; a worker that has died meanwhile is noticed by its closed output."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(cell.encode() + b"\n")
            self.process.stdin.flush()

    def receive(self) -> list[dict[str, Any]] | None:
        """Events that have arrived; None once the process has closed its output."""
        assert self.process.stdout is not None
        data = self.process.stdout.read()
        if data == b"":
            return None
        *lines, self.rest = (self.rest + (data or b"")).split(b"\n")
        return [json.loads(line) for line in lines]

    def how_it_ended(self) -> str:
        """Its exit code in words; waits for it."""
        code = self.process.wait()
        if code == -signal.SIGKILL and out_of_memory_kills() > self.kills:
            return f"exit code {code}: killed by the system, which was out of memory"
        return f"exit code {code}"

    def terminate(self) -> None:
        """Ask the process to save its cell and end."""
        self.ending = True
        self.process.terminate()


class LocalEngine:
    """Hands cells to worker processes one by one; see `sweeps.engine.Engine`."""

    name, detached, reports = "local", False, True

    def __init__(self, folder: Path, machine: list[Share], listen: Listener, lease_s: float = LEASE_S):
        self.folder, self.listen, self.lease_s = folder, listen, lease_s
        self._machine, self._pool = machine, []
        self._waiting: deque[str] = deque()
        self._states: dict[str, CommandState] = {}
        self._details: dict[str, str] = {}
        self._beats: dict[str, tuple[int, int, float]] = {}
        self._selector = selectors.DefaultSelector()
        self._queue = Queue(folder, self.name)
        self._looked = time.monotonic()

    def submit(self, cells: Sequence[CellTask]) -> None:
        """Take the cells; one that was here before goes to the front."""
        for task in cells:
            before = self._states.get(task.cell)
            if before in (PENDING, RUNNING):
                continue
            (self._waiting.append if before is None else self._waiting.appendleft)(task.cell)
            self._states[task.cell] = PENDING
        self._queue.save(dict.fromkeys(self._waiting, ""))
        while len(self._pool) < min(len(self._machine), len(self._waiting)):
            process = Process(len(self._pool), self.folder, self._machine[len(self._pool)])
            self._pool.append(process)
            self._selector.register(process.process.stdout, selectors.EVENT_READ, process)  # type: ignore[arg-type]
        for process in self._pool:
            if process.ready and not process.cell:
                self._assign(process)

    def poll(self, timeout_s: float = 1.0) -> dict[str, CommandState]:
        """Pass on what the workers tell, replace those that died, and give the idle ones cells."""
        if PENDING in self._states.values() or RUNNING in self._states.values():
            for key, _ in self._selector.select(timeout=timeout_s):
                process: Process = key.data
                events = process.receive()
                if events is None:
                    self._replace(process)
                for event in events or []:
                    self._take(process, event)
            self._end_silent_workers()
        return dict(self._states)

    def _take(self, process: Process, event: dict[str, Any]) -> None:
        if event["event"] == "refused":
            raise UserError(event["reason"])
        if event["event"] != "ready":
            self.listen({**event, "worker": process.number})
        if event["event"] in ("ready", "finished"):
            process.ready, process.failed_starts = True, 0
            if process.cell:
                self._states[process.cell], process.cell = GONE, ""
            self._assign(process)

    def _assign(self, process: Process) -> None:
        if self._waiting and not process.ending:
            process.cell = self._waiting.popleft()
            self._states[process.cell] = RUNNING
            process.send(process.cell)

    def _replace(self, process: Process) -> None:
        self._selector.unregister(process.process.stdout)  # type: ignore[arg-type]
        cell, ready, asked, detail = process.cell, process.ready, process.ending, process.how_it_ended()
        if not cell and not ready:
            process.failed_starts += 1
            if process.failed_starts == MAX_FAILED_STARTS:
                self._pool.remove(process)
                raise UserError(f"a worker ended with {detail} before it could take a cell: its log is {process.log}")
        process.start()
        self._selector.register(process.process.stdout, selectors.EVENT_READ, process)  # type: ignore[arg-type]
        if cell:
            self._details[cell], self._states[cell] = detail, GONE
            if not asked:
                self.listen({"event": "died", "run": cell, "worker": process.number, "how": detail})

    def _end_silent_workers(self) -> None:
        """Kill a worker whose heartbeat stands still: it is stopped or stuck in the system, and its cell is free."""
        now = time.monotonic()
        if now - self._looked < self.lease_s / 6:
            return
        self._looked = now
        for process in self._pool:
            files = run_files(run_folder(self.folder, process.cell)) if process.cell else None
            mine = [a for a in attempts(files)[-1:] if a.owner.get("pid") == process.process.pid] if files else []
            if not mine:
                continue
            token, beat = mine[0].token, mine[0].beat
            if self._beats.get(process.cell, ())[:2] != (token, beat):
                self._beats[process.cell] = (token, beat, now)
            elif now - self._beats[process.cell][2] > mine[0].lease_s:
                process.process.kill()

    def cancel(self, cells: Sequence[str]) -> None:
        """Drop the waiting ones; ask the workers that have the others to save and end."""
        for cell in cells:
            if cell in self._waiting:
                self._waiting.remove(cell)
                self._states[cell] = GONE
        for process in self._pool:
            if process.cell in cells:
                process.terminate()

    def detail(self, cell: str) -> str:
        """How the worker that last had the cell ended."""
        return self._details.get(cell, "")

    def close(self) -> None:
        """Let the workers end: at once those with nothing in hand, the others once their cells are saved."""
        for process in self._pool:
            if process.cell:
                process.terminate()
            assert process.process.stdin is not None
            if not process.cell:
                with contextlib.suppress(BrokenPipeError):
                    process.process.stdin.close()
        deadline = time.monotonic() + GRACE_S
        for process in self._pool:
            try:
                process.process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.process.kill()
                process.process.wait()
            for stream in (process.process.stdin, process.process.stdout):
                assert stream is not None
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._selector.close()
        self._queue.close()
