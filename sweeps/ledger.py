"""What is known of a study's cells, and who may work on each: read from the run folders alone, with no database beside them.

States: `planned`; `queued` (an engine has it); `running`, `trained` (the last step is saved), `evaluated` (every score is in) while a
worker holds it; `done`; `failed` (with a reason); `retryable` (preempted, lost with its worker, or stopped by storage: it goes on when
next claimed); `cancelled` (until `dit retry`). A cell that costs `MAX_DEATHS` workers without coming further is failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit.design.config import RunConfig
from dit.errors import UserError
from dit.store import lease
from dit.store.lease import Attempt, Busy, Lease, Observer, is_gone
from dit.store.study import (
    DONE,
    FAILED,
    PLANNED,
    RETRYABLE,
    RUNNING,
    RunStore,
    Study,
    load_study,
    read_json,
    write_json,
)
from sweeps.queues import queued_cells

QUEUED, TRAINED, EVALUATED, CANCELLED = "queued", "trained", "evaluated", "cancelled"
STATES = (PLANNED, QUEUED, RUNNING, TRAINED, EVALUATED, DONE, FAILED, RETRYABLE, CANCELLED)
HELD = (RUNNING, TRAINED, EVALUATED)
ENDED = (DONE, FAILED, CANCELLED)

MAX_DEATHS = 3
"""Lost attempts in a row without a new checkpoint, score or batch of samples that make a cell failed."""
MAX_PREEMPTIONS = 30
"""Preempted attempts in a row without a new checkpoint, score or batch of samples that make a cell failed."""


@dataclass(frozen=True)
class Cell:
    """One cell as its folder tells it. `attempt` is the highest attempt's record, `attempts` their number."""

    run: RunConfig
    state: str
    status: dict[str, Any]
    attempt: Attempt | None = None
    attempts: int = 0
    reason: str = ""
    engine: str = ""

    @property
    def step(self) -> int:
        """The last step known of: a heartbeat tells it before a checkpoint does."""
        live = self.attempt.progress.get("step") if self.attempt and self.state in HELD else None
        return max(self.status["step"], live if isinstance(live, int) else 0)


class Ledger:
    """The cells of the study in a folder. Reading it is free; `claim` is how a worker comes by a cell."""

    def __init__(self, folder: Path, study: Study | None = None, observer: Observer | None = None):
        self.folder = folder
        self.study = study or load_study(folder)
        self.runs = {run.run: run for run in self.study.runs}
        self.observer = observer or Observer()

    def require_study(self) -> None:
        """Check that the study's folder is still there: what is gone is not made again.

        Raises:
            UserError: if it is not.
        """
        if not (self.folder / "study.json").is_file():
            raise UserError(f"{self.folder} has no study.json any more: restore the folder, or sweep into a new one")

    def run(self, name: str) -> RunConfig:
        """The cell of that name.

        Raises:
            UserError: if the study has none.
        """
        if name not in self.runs:
            raise UserError(f"{self.folder} has no cell {name!r}: `dit status {self.folder}` lists them")
        return self.runs[name]

    def cells(self, runs: Iterable[RunConfig] | None = None) -> list[Cell]:
        """The state of the given cells, all by default."""
        queued = queued_cells(self.folder)
        return [self._cell(run, queued) for run in (self.study.runs if runs is None else runs)]

    def cell(self, run: RunConfig) -> Cell:
        """The state of one cell."""
        return self._cell(run, queued_cells(self.folder))

    def _cell(self, run: RunConfig, queued: dict[str, str]) -> Cell:
        record = RunStore(self.folder, run)
        status = record.status()
        files = lease.run_files(record.path)
        names = files.names()
        tokens = lease.tokens(names)
        last = lease.parse_attempt(tokens[-1], files.read(f"{tokens[-1]:04d}.json")) if tokens else None
        count = max(len(tokens), status["attempt"])

        def cell(state: str, reason: str = "", engine: str = "") -> Cell:
            return Cell(run, state, status, last, count, reason, engine)

        if record.is_done():  # which is final, whatever the attempts say
            return cell(DONE)
        if last is not None and not last.ended and not is_gone(last.owner):
            missing, trained = record.missing_evaluations(), status["step"] >= run.steps
            state = RUNNING if not trained else TRAINED if missing else EVALUATED
            return cell(state, "asked to save and stop" if lease.CANCEL in names else "")
        if lease.CANCEL in names:
            return cell(CANCELLED, "cancelled: `dit retry` takes it up again")
        if status["state"] == FAILED and status["attempt"] > forgiven(record.path):
            return cell(FAILED, str(status.get("reason") or ""))
        if run.run in queued:
            return cell(QUEUED, _why_stopped(last), queued[run.run])
        if (last is None and status["state"] == PLANNED) or status["state"] == DONE:  # done: more is asked of it since
            return cell(PLANNED)
        return cell(RETRYABLE, str(status.get("reason") or "") or _why_stopped(last))

    def is_free(self, run: RunConfig) -> bool:
        """Whether no worker holds the cell, as far as this process has come to know by looking at it."""
        files = lease.run_files(RunStore(self.folder, run).path)
        last = lease.attempts(files)[-1:]
        return not last or self.observer.is_free(run.run, last[0])

    def claim(
        self, run: RunConfig, lease_s: float = lease.LEASE_S, on_beat: Callable[[], None] = lambda: None
    ) -> Lease | None:
        """Claim the cell, or None if it has ended, is held, or is failed here for having cost too many workers.

        The state is read again under the lease, so a cell that another worker has just finished is not run twice.
        """
        self.require_study()
        cell = self.cell(run)
        if cell.state in ENDED:
            return None
        record = RunStore(self.folder, run)
        record.check_place()
        files = lease.run_files(record.path)
        stopped = stops_without_progress(self.folder, run)
        try:
            held = lease.claim(
                files,
                run.run,
                self.observer,
                lease_s,
                after=cell.status["attempt"],
                on_beat=on_beat,
                progress=_progress(record),
            )
        except Busy:
            return None
        if self._ended_meanwhile(record, held):
            held.withdraw()
            return None
        kind, count = stopped
        if count >= (MAX_DEATHS if kind == lease.LOST else MAX_PREEMPTIONS):
            with held:
                self._fail(record, held, f"{kind} {count} times in a row without coming further than step {cell.step}")
            return None
        return held

    def _ended_meanwhile(self, record: RunStore, held: Lease) -> bool:
        status = record.status()
        failed = status["state"] == FAILED and status["attempt"] > forgiven(record.path)
        return record.is_done() or failed or lease.CANCEL in held.files.names()

    def fail(self, run: RunConfig, reason: str) -> bool:
        """Record the cell as failed; False if someone holds it or it has ended."""
        record = RunStore(self.folder, run)
        cell = self.cell(run)
        if cell.state in ENDED:
            return False
        record.check_place()
        try:
            held = lease.claim(
                lease.run_files(record.path),
                run.run,
                self.observer,
                after=cell.status["attempt"],
                progress=_progress(record),
            )
        except Busy:
            return False
        with held:
            self._fail(record, held, reason)
        return True

    def _fail(self, record: RunStore, held: Lease, reason: str) -> None:
        fenced = RunStore(self.folder, record.run, held.check)
        known = {key: value for key, value in record.status().items() if key in ("step", "loss")}
        fenced.set_status(FAILED, **known, attempt=held.token, reason=reason)
        held.end(FAILED)

    def cancel(self, run: RunConfig) -> None:
        """Ask the cell's worker to save and stop at its next heartbeat, and every other not to begin it."""
        record = RunStore(self.folder, run)
        record.check_place()
        write_json(record.path / "attempts" / lease.CANCEL, {"schema_version": 1})

    def retry(self, run: RunConfig) -> bool:
        """Forgive the cell's failures and lost workers, or withdraw its cancellation; False if there is nothing to forgive."""
        cell = self.cell(run)
        record = RunStore(self.folder, run)
        files = lease.run_files(record.path)
        cancelled = lease.CANCEL in files.names()
        lost = cell.state == RETRYABLE and stops_without_progress(self.folder, run)[1]
        if cell.state != FAILED and not cancelled and not lost:
            return False
        record.check_place()
        after = max([cell.status["attempt"], *lease.tokens(files.names())])
        write_json(record.path / "attempts" / lease.RETRY, {"schema_version": 1, "after": after})
        files.remove(lease.CANCEL)
        return True


def forgiven(run_folder: Path) -> int:
    """The last attempt whose failure, and those before it, `dit retry` has forgiven; 0 if none."""
    path = run_folder / "attempts" / lease.RETRY
    value = read_json(path) if path.exists() else {}
    after = value.get("after") if isinstance(value, dict) else None
    return after if isinstance(after, int) else 0


def stops_without_progress(folder: Path, run: RunConfig) -> tuple[str, int]:
    """How the latest attempts ended, `lost` or `preempted`, and how many in a row did so without a new checkpoint or score."""
    record = RunStore(folder, run)
    after, now = forgiven(record.path), _progress(record)["from"]
    kind, count = "", 0
    for attempt in reversed(lease.attempts(lease.run_files(record.path))):
        how = attempt.ended or lease.LOST
        if attempt.token <= after or attempt.progress.get("from") != now or how not in (lease.LOST, lease.PREEMPTED):
            break
        if kind and how != kind:
            break
        kind, count = how, count + 1
    return kind, count


def _progress(record: RunStore) -> dict[str, Any]:
    """Where an attempt that begins now takes the cell up: its last saved step, its number of scores, and samples kept of the next."""
    missing = record.missing_evaluations()
    kept = [head for head in map(_head, map(record.drawn_path, missing)) if head]
    return {"from": [record.status()["step"], len(record.run.evaluations) - len(missing), *kept]}


def _head(path: Path) -> str:
    """The checksum that kept samples begin with (`dit.runs.kept_samples`); empty where there is no such file."""
    try:
        with path.open("rb") as file:
            return file.read(8).hex()
    except FileNotFoundError:
        return ""


def _why_stopped(last: Attempt | None) -> str:
    if last is None or last.ended == DONE:
        return ""
    return last.ended or f"lost with its worker ({owner_name(last)})"


def owner_name(attempt: Attempt) -> str:
    """The attempt's process as a person would say it."""
    return f"{attempt.owner.get('host', 'unknown host')}:{attempt.owner.get('pid', '?')}"
