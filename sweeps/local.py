"""The local engine: worker processes that live across cells, replaced when they die."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dit.config import RunArguments, RunConfig
from dit.errors import UserError
from dit.store import FAILED, RunStore

MAX_DEATHS = 3
"""A cell that takes this many workers with it is recorded as failed."""

MALLOC = "mmap_threshold=8589934592 trim_threshold=17179869184 top_pad=268435456 hugetlb=1"
"""glibc keeps the memory of a step for the next one, in huge pages. XLA on a CPU asks for its temporary memory anew at every step,
and faulting those pages in took a third of a step where it was measured. Read before a process starts; other C libraries ignore it."""

Listener = Callable[[dict[str, Any]], None]


class Worker:
    """One worker process and the cell it has in hand."""

    def __init__(self, number: int, cpus: list[int], log: Path):
        self.number, self.cpus, self.log = number, cpus, log
        self.run: RunConfig | None = None
        self.rest = b""
        self.failed_starts = 0
        self._start()

    def _start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "sweeps.worker", "--cpus", ",".join(map(str, self.cpus))]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={"GLIBC_TUNABLES": _tunables(), **os.environ},
            )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.ready = False

    def send(self, task: dict[str, Any]) -> None:
        """Hand over a cell; a worker that has died meanwhile is noticed by its closed output."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(task).encode() + b"\n")
            self.process.stdin.flush()

    def receive(self) -> list[dict[str, Any]] | None:
        """Events that have arrived; None once the process has closed its output."""
        assert self.process.stdout is not None
        data = self.process.stdout.read()
        if data == b"":
            return None
        *lines, self.rest = (self.rest + (data or b"")).split(b"\n")
        return [json.loads(line) for line in lines]

    def restart(self) -> int:
        """Replace the dead process; returns its exit code."""
        code = self.process.wait()
        self.rest = b""
        self._start()
        return code

    def stop(self) -> None:
        """Let the process end: at once if it has nothing in hand."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _tunables() -> str:
    return ":".join(f"glibc.malloc.{setting}" for setting in MALLOC.split())


def run_cells(
    folder: Path, study: str, runs: list[RunConfig], arguments: RunArguments, workers: int, listen: Listener
) -> None:
    """Run the cells in order on `workers` processes; every event goes to `listen`, with the worker's number added.

    A cell whose worker dies is taken up again where it stood, `MAX_DEATHS` times at most, then recorded as failed.
    """
    waiting, deaths = deque(runs), dict.fromkeys((run.run for run in runs), 0)
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    selector = selectors.DefaultSelector()
    pool = [
        Worker(k, cpus[k::workers] or cpus, folder / "logs" / f"worker-{k}.log") for k in range(min(workers, len(runs)))
    ]
    for worker in pool:
        selector.register(worker.process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]

    def assign(worker: Worker) -> None:
        worker.run = waiting.popleft() if waiting else None
        if worker.run is not None:
            listen({"event": "started", "run": worker.run.run, "worker": worker.number})
            task = {"folder": str(folder), "study": study, "run": dataclasses.asdict(worker.run)}
            worker.send({**task, "arguments": dataclasses.asdict(arguments)})

    def replace(worker: Worker) -> None:
        selector.unregister(worker.process.stdout)  # type: ignore[arg-type]
        run, started, code = worker.run, worker.ready, worker.restart()
        worker.run = None
        selector.register(worker.process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]
        if run is None:
            worker.failed_starts += not started
            if worker.failed_starts == MAX_DEATHS:
                raise UserError(f"a worker ended with code {code} before it could take a cell: its log is {worker.log}")
            return
        deaths[run.run] += 1
        listen({"event": "died", "run": run.run, "worker": worker.number, "code": code})
        if deaths[run.run] < MAX_DEATHS:
            waiting.appendleft(run)
            return
        record = RunStore(folder, run)
        reason = f"its worker died {MAX_DEATHS} times, last with exit code {code}: see {worker.log}"
        status = {key: value for key, value in record.status().items() if key in ("step", "attempt", "loss")}
        record.set_status(FAILED, **status, reason=reason)
        listen({"event": "failed", "run": run.run, "worker": worker.number, "reason": reason})
        listen({"event": "finished", "run": run.run, "worker": worker.number, "state": FAILED})

    try:
        while waiting or any(worker.run for worker in pool):
            for key, _ in selector.select(timeout=1.0):
                worker: Worker = key.data
                events = worker.receive()
                if events is None:
                    replace(worker)
                    continue
                for event in events:
                    if event["event"] in ("ready", "finished"):
                        if event["event"] == "finished":
                            listen({**event, "worker": worker.number})
                        worker.ready, worker.failed_starts = True, 0
                        assign(worker)
                    else:
                        listen({**event, "worker": worker.number})
            listen({"event": "tick"})
    finally:
        for worker in pool:
            worker.stop()
