"""Run what is missing of a study: the declaration against the ledger, through whichever engine was chosen."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit.design.config import RunArguments, RunConfig
from dit.errors import UserError
from dit.store.lease import LOST
from dit.store.study import DONE, FAILED, Study, check_study_folder, exclusive, save_study
from sweeps import arguments as run_arguments
from sweeps import ledger as states
from sweeps.engine import GONE, CellTask, Engine, Listener, Resources, worker_command
from sweeps.ledger import Ledger, stops_without_progress
from sweeps.progress import Progress, work


@dataclass(frozen=True)
class Outcome:
    """Cells asked for, and how many of them are now done, failed, cancelled, and held by workers that are not this sweep's."""

    cells: int
    done: int
    failed: int
    cancelled: int = 0
    elsewhere: int = 0
    stopped: bool = False


FOLLOW_S = 5.0
"""Seconds between two readings of the ledger, for engines that do not report."""

MAX_FALSE_STARTS = 4
"""Times in a row that a cell's command may end without having claimed it, before the sweep gives up."""

EngineMaker = Callable[[Path, Listener], Engine]


def declare(study: Study, folder: Path, arguments: RunArguments) -> None:
    """Record in the folder what the study asks for and how it is to be run: all that a worker needs.

    Raises:
        UserError: if the folder is another study's, a file, or of a newer schema.
    """
    check_study_folder(folder, study.name)
    with exclusive(folder / ".lock", wait=True):
        save_study(folder, study)
        run_arguments.save(folder, arguments)


def sweep(
    study: Study,
    runs: tuple[RunConfig, ...],
    folder: Path,
    arguments: RunArguments,
    make_engine: EngineMaker,
    needs: Callable[[RunConfig], Resources],
    retry_failed: bool,
    tell: Callable[[str], None],
    detach: bool = False,
) -> Outcome:
    """Bring the chosen cells of a study to their end, the longest first; what is done already is not touched.

    A cell that failed before is left failed unless `retry_failed`; one that another sweep's worker holds is left to it. With `detach`
    the cells are only submitted, to an engine that outlives this process.

    Raises:
        UserError: if the folder is another study's, a file, or of a newer schema, or the engine refuses.
    """
    declare(study, folder, arguments)
    ledger = Ledger(folder, study)
    cells = ledger.cells(runs)
    if retry_failed:
        for cell in cells:
            if cell.state == FAILED:
                ledger.retry(cell.run)
        cells = ledger.cells(runs)
    missing = sorted((cell.run for cell in cells if cell.state not in states.ENDED), key=work, reverse=True)
    stopped = False
    if missing:
        done = sum(cell.state == DONE for cell in cells)
        progress = Progress(missing, done)
        try:
            engine = make_engine(folder, progress)
            drive = _Drive(ledger, engine, missing, needs, progress)
            stopped = drive.submit_all() if detach else drive.to_the_end()
        finally:
            progress.close()
    elif failed := sum(cell.state == FAILED for cell in cells):
        tell(f"{failed} failed before and were left so: --retry-failed runs them again")
    ledger.require_study()
    now = [cell.state for cell in ledger.cells(runs)]
    return Outcome(
        len(now),
        now.count(DONE),
        now.count(FAILED),
        now.count(states.CANCELLED),
        sum(state in states.HELD for state in now),
        stopped,
    )


class _Drive:
    """Keeps an engine busy until every cell has ended, is another's, or is given up."""

    def __init__(
        self,
        ledger: Ledger,
        engine: Engine,
        runs: Sequence[RunConfig],
        needs: Callable[[RunConfig], Resources],
        listen: Listener,
    ):
        self.ledger, self.engine, self.listen, self.needs = ledger, engine, listen, needs
        self.left = {run.run: run for run in runs}
        self.signals = 0
        self._followed, self._attempts = 0.0, {}
        self._false_starts: dict[str, tuple[int, int]] = {}

    def _task(self, run: RunConfig) -> CellTask:
        needs = self.needs(run)
        together = ("--distributed",) if needs.hosts > 1 else ()
        return CellTask(run.run, worker_command(self.ledger.folder, run.run, options=together), needs)

    def submit_all(self) -> bool:
        """Submit and leave."""
        try:
            self.engine.submit([self._task(run) for run in self.left.values()])
        finally:
            self.engine.close()
        return False

    def to_the_end(self) -> bool:
        """Submit, and again what stopped before its end; whether a signal ended it early."""
        with _signals(self._on_signal):
            try:
                self.engine.submit([self._task(run) for run in self.left.values()])
                while self.left and not self.signals:
                    self.ledger.require_study()
                    if not self.engine.reports:
                        self._follow()
                    gone = [cell for cell, state in self.engine.poll().items() if state == GONE and cell in self.left]
                    again = [self.left[cell] for cell in gone if self._is_to_run_again(self.left[cell])]
                    if again:
                        self.engine.submit([self._task(run) for run in again])
                    self.listen({"event": "tick"})
            finally:
                self.engine.close()
        return bool(self.signals)

    def _follow(self) -> None:
        """Tell what the ledger says of cells whose commands tell nothing themselves."""
        if time.monotonic() - self._followed < FOLLOW_S:
            return
        self._followed = time.monotonic()
        for cell in self.ledger.cells(list(self.left.values())):
            name, attempt = cell.run.run, cell.attempt
            if cell.state in states.ENDED and self.engine.detached:
                self._let_go(cell)
            elif cell.state in states.HELD and attempt is not None:
                if self._attempts.get(name) != attempt.token:
                    self.listen({"event": "started", "run": name, "worker": name})
                self._attempts[name] = attempt.token
                loss = attempt.progress.get("loss")
                if isinstance(loss, float):
                    self.listen({"event": "step", "run": name, "worker": name, "step": cell.step, "loss": loss})

    def _let_go(self, cell: states.Cell) -> None:
        """The cell has ended."""
        if not self.engine.reports:
            self.listen({"event": "finished", "run": cell.run.run, "worker": cell.run.run, "state": cell.state})
        del self.left[cell.run.run]

    def _is_to_run_again(self, run: RunConfig) -> bool:
        """What the ledger says of a cell whose command is gone; one that has ended or is another's is let go."""
        cell = self.ledger.cell(run)
        if cell.state in states.ENDED:
            self._let_go(cell)
            return False
        if cell.state in states.HELD and not self.ledger.is_free(run):
            if self.ledger.observer.has_moved(run.run):
                del self.left[run.run]
            return False
        kind, count = stops_without_progress(self.ledger.folder, run)
        if kind == LOST and count >= states.MAX_DEATHS:
            detail = self.engine.detail(run.run)
            reason = f"its worker died {count} times without coming further" + (
                f", last with {detail}" if detail else ""
            )
            if self.ledger.fail(run, reason):
                self.listen({"event": "failed", "run": run.run, "reason": reason})
                self.listen({"event": "finished", "run": run.run, "worker": -1, "state": FAILED})
                del self.left[run.run]
            return False
        self._count_false_start(cell)
        return True

    def _count_false_start(self, cell: states.Cell) -> None:
        """Take note of a command that ended without a worker having taken its cell: it would do so for ever.

        Raises:
            UserError: after `MAX_FALSE_STARTS` in a row.
        """
        name = cell.run.run
        attempts, count = self._false_starts.get(name, (-1, 0))
        self._false_starts[name] = (cell.attempts, count + 1 if cell.attempts == attempts else 1)
        if self._false_starts[name][1] > MAX_FALSE_STARTS:
            detail = self.engine.detail(name)
            raise UserError(
                f"the command of {name} ended {MAX_FALSE_STARTS} times before a worker took the cell"
                f"{f' ({detail})' if detail else ''}: see {self.ledger.folder / 'logs'}"
            )

    def _on_signal(self, number: int) -> None:
        self.signals += 1
        if self.signals == 1:
            message = "stopping: cells save their state first (once more ends them where they are)"
            if self.engine.detached:
                message = f"leaving: {self.engine.name} goes on with the cells"
            self.listen({"event": "warning", "message": message})
        else:
            raise KeyboardInterrupt


@contextmanager
def _signals(handle: Callable[[int], None]) -> Iterator[None]:
    """Have SIGTERM and SIGINT handled so; only a process's main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {
        number: signal.signal(number, lambda number, _frame: handle(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
