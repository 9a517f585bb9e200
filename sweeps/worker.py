"""The one process that every engine launches: it claims cells of a study one by one and runs each to its end.

Cells come from the ledger (whatever is left to claim, the longest first), from its command line (one), or from standard input (a line
each, as the local engine hands them over; it then ends as soon as its parent does). JAX is imported once, at the first cell.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import importlib.metadata
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dit.design.config import RunArguments, RunConfig
from dit.errors import UserError
from dit.store.lease import LEASE_S, PREEMPTED, Lease, LeaseLost
from dit.store.study import FAILED, RETRYABLE, storage_errors
from sweeps import engine
from sweeps.devices import has_accelerators
from sweeps.engine import Listener
from sweeps.gang import Alone, Gang
from sweeps.ledger import ENDED, Ledger
from sweeps.progress import work

HANG_S = 3600.0
"""Seconds without a step, a score or any other event after which a worker gives up its cell."""
HUNG = 70
"""Exit code of a worker that gave up a cell because nothing moved (EX_SOFTWARE)."""


@dataclass(frozen=True)
class Options:
    """How a worker works. `lease_s`: see `dit.store.lease`; `hang_s`: see `HANG_S`; `wait`: stay until every cell has ended."""

    lease_s: float = LEASE_S
    hang_s: float = HANG_S
    wait: bool = False


class Worker:
    """Claims and runs cells of one study, and tells `report` what happens."""

    def __init__(
        self, ledger: Ledger, arguments: RunArguments, options: Options, report: Listener, gang: Gang | None = None
    ):
        self.ledger, self.arguments, self.options, self._report = ledger, arguments, options, report
        self.gang = gang or Alone()
        self.stopping = False
        self._lease: Lease | None = None
        self._moved = time.monotonic()

    def work(self, name: str | None) -> int:
        """Run the named cell, or whatever is left; the exit code, the same in all processes of a gang.

        Raises:
            UserError: if there are too few devices, or if storage fails so that not even that can be recorded; what was saved stays.
        """
        self.require_devices()
        with storage_errors(self.ledger.folder):
            return self._work(name)

    def require_devices(self) -> None:
        """Refuse a mesh that the devices here are too few for, before any cell is taken: it would fail every one of them.

        Raises:
            UserError: naming both numbers.
        """
        if self.arguments.mesh:
            prepare()
            from dit.model.mesh import make_mesh

            make_mesh(self.arguments.mesh)

    def _work(self, name: str | None) -> int:
        if self.gang.leads:
            code = self.whatever_is_left() if name is None else self.one(name)
            self.gang.tell("cell", "")
            return self.gang.tell("exit code", code)
        while cell := self.gang.tell("cell", None, patiently=True):  # process 0 may have to wait for a free one
            self._execute(self.ledger.run(cell), None)
        return self.gang.tell("exit code", None)

    def one(self, name: str) -> int:
        """Run that cell, waiting for a silent holder's lease to run out; the exit code."""
        run = self.ledger.run(name)
        while not self.stopping:
            state = self.take(run)
            if state is not None:
                return {FAILED: engine.SOME_FAILED, RETRYABLE: engine.STOPPED}.get(state, engine.DONE)
            if self._is_out_of_reach(run):
                break
            time.sleep(min(1.0, self.options.lease_s / 6))
        cell = self.ledger.cell(run)
        self.report({"event": "finished", "run": name, "state": cell.state})
        if self.stopping:
            return engine.STOPPED
        return engine.SOME_FAILED if cell.state == FAILED else engine.DONE

    def whatever_is_left(self) -> int:
        """Run cells until none is left to claim, the longest first; the exit code."""
        waiting = sorted(self.ledger.study.runs, key=work, reverse=True)
        while waiting and not self.stopping:
            taken = [run for run in waiting if not self.stopping and self.take(run) is not None]
            left = [run for run in waiting if not self._is_out_of_reach(run)]
            waiting = left if not self.options.wait else [run for run in waiting if not self._has_ended(run)]
            if waiting and not taken and not self.stopping:
                time.sleep(min(1.0, self.options.lease_s / 6))
        if self.stopping:
            return engine.STOPPED
        states = [cell.state for cell in self.ledger.cells()]
        return engine.SOME_FAILED if FAILED in states else engine.DONE

    def _has_ended(self, run: RunConfig) -> bool:
        return self.ledger.cell(run).state in ENDED

    def _is_out_of_reach(self, run: RunConfig) -> bool:
        """Whether this worker need not wait for the cell: it has ended, or its holder has been seen to live."""
        state = self.ledger.cell(run).state
        return state in ENDED or (not self.ledger.is_free(run) and self.ledger.observer.has_moved(run.run))

    def take(self, run: RunConfig) -> str | None:
        """Claim and run the cell; its state then, or None if it was not to be had."""
        lease = self.ledger.claim(run, self.options.lease_s, self._watch)
        if lease is None:
            return None
        self._lease, self._moved = lease, time.monotonic()
        if self.stopping:
            lease.request_stop(PREEMPTED)
        self.report({"event": "started", "run": run.run})
        self.gang.tell("cell", run.run)
        try:
            state = self._execute(run, lease)
        finally:
            self._lease = None
        self.stopping = self.stopping or lease.stop == PREEMPTED
        self.report({"event": "finished", "run": run.run, "state": state})
        return state

    def _execute(self, run: RunConfig, lease: Lease | None) -> str:
        folder, study = self.ledger.folder, self.ledger.study.name
        try:
            return prepare()(folder, study, run, self.arguments, lambda e: self.report({**e, "run": run.run}), lease)
        except LeaseLost as error:
            self.report({"event": "warning", "run": run.run, "message": str(error)})
            if self.gang.count > 1:
                sys.stderr.flush()
                os._exit(engine.STOPPED)  # the others wait in a collective: without process 0 they end too
            return RETRYABLE

    def report(self, event: dict[str, Any]) -> None:
        """Pass the event on; every one of them is a sign of life."""
        self._moved = time.monotonic()
        self._report(event)

    def _watch(self) -> None:
        """At each heartbeat: a process whose cell does not move shows where it hangs and ends, so that the lease does too."""
        silent = time.monotonic() - self._moved
        if silent > self.options.hang_s:
            print(f"nothing has moved for {silent:.0f} s: giving the cell up, it resumes elsewhere", file=sys.stderr)
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
            sys.stderr.flush()
            os._exit(HUNG)

    @contextlib.contextmanager
    def stopping_on_signals(self) -> Iterator[None]:
        """SIGTERM and the first SIGINT ask the cell to save and end; a second SIGINT ends it where it is."""

        def stop(number: int, _frame: Any) -> None:
            if number == signal.SIGINT and self.stopping:
                raise KeyboardInterrupt
            self.stopping = True
            if self._lease is not None:
                self._lease.request_stop(PREEMPTED)

        # Of a gang SIGTERM is JAX's, which finds a step for all to stop at.
        numbers = (signal.SIGTERM, signal.SIGINT) if self.gang.count == 1 else ()
        before = {number: signal.signal(number, stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(worker: Worker) -> int:
    """Run the cells that come on standard input, a name each line, until it closes; a cell in hand is then left where it is.

    Raises:
        UserError: as `Worker.work`.
    """
    inbox: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            inbox.put(line.strip())
        os._exit(0)  # the parent is gone: the cell resumes

    threading.Thread(target=listen, daemon=True).start()
    prepare()
    try:
        worker.require_devices()
    except UserError as error:
        worker.report({"event": "refused", "reason": str(error)})
        raise
    worker.report({"event": "ready"})
    while not worker.stopping:
        try:
            name = inbox.get(timeout=0.5)
        except queue.Empty:
            continue
        run = worker.ledger.run(name)
        if worker.take(run) is None:
            worker.report({"event": "finished", "run": name, "state": worker.ledger.cell(run).state})
    return engine.STOPPED


def use_processors(cpus: set[int]) -> None:
    """Stay on these processors (all of them if none are named), and have XLA compile for them quickly.

    That takes a third of the time, for code measured no slower. A worker by itself on a machine without accelerators compiles as a
    sweep's do, so that a cell that moves between them has the same bits. Newer XLA has no flag for its older, quicker fusion
    emitters, and ends the process at flags that it does not know.
    """
    if not cpus and has_accelerators():
        return
    if cpus and hasattr(os, "sched_setaffinity"):
        try:
            os.sched_setaffinity(0, cpus)
        except OSError as error:
            raise UserError(f"processors {sorted(cpus)} are not this process's to use: {error}") from error
    flags = ["--xla_backend_optimization_level=1", "--xla_cpu_parallel_codegen_split_count=1"]
    if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")])


@functools.cache
def prepare() -> Callable[..., str]:
    """What runs a cell, with JAX imported and told to keep what XLA compiles for the next worker."""
    import jax

    from dit.runs.run import execute
    from dit.store.environment import cache_folder

    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    return execute
