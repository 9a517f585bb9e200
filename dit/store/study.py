"""The record of runs: plain files in a study's folder, one writer per file, readable without JAX.

    DIR/study.json                       what the study asks for: its cells with steps and evaluations
    DIR/runs/<run>/config.json           the run's identity, immutable
    DIR/runs/<run>/environment-<n>.json  versions, git revision and device of attempt n
    DIR/runs/<run>/metrics/<n>.jsonl     rows logged by attempt n: step, loss, grad_norm, images_per_s, train_gflops
    DIR/runs/<run>/evals/<step>-<key>.json   one row of the results table with its protocol
    DIR/runs/<run>/samples/<step>-<key>.npz  the first samples of that evaluation (NHWC uint8, with labels)
    DIR/runs/<run>/drawn/<step>-<key>.part   samples of an evaluation under way, see `dit.runs.kept_samples`
    DIR/runs/<run>/status.json           state, step, loss, attempt, reason
    DIR/runs/<run>/attempts/<n>.json     who holds the run and how attempts ended, see `dit.store.lease`
    DIR/arguments.json                   how its runs are carried out: the arguments that workers take where theirs are silent
    DIR/runs/<run>/checkpoints/, ema/    see `dit.train.checkpoint`

A whole file is written beside its place and renamed, so a reader never sees half of one; a torn last metrics line is dropped. An
attempt that resumes logs some steps again: the highest attempt's row wins. Before each write of a run's files its fence is asked
whether this process still holds the run; a writer that has lost it raises `dit.store.lease.LeaseLost` and changes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit.design.config import Evaluation, RunConfig, from_json, to_json
from dit.errors import UserError
from dit.store.lease import Busy
from dit.store.paths import open_beneath, open_regular, refuse_links, refuse_links_in

SCHEMA_VERSION = 1

PLANNED, RUNNING, DONE, FAILED = "planned", "running", "done", "failed"
RETRYABLE = "retryable"
"""A run that stopped before its end and goes on from its last checkpoint when it is claimed again."""

Fence = Callable[[], None]
"""Raises `dit.store.lease.LeaseLost` if this process may not write to the run any more."""


def no_fence() -> None:
    """The fence of files that only one process ever writes."""


def write_json(path: Path, value: Any, fence: Fence = no_fence) -> None:
    """Write `value` whole or not at all: beside its place, synced, then, if the fence lets it, renamed over it."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    refuse_links(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(beside, "w", encoding="utf8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fence()
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


def read_json(path: Path) -> Any:
    """The value in a file that `write_json` wrote.

    Raises:
        UserError: if the file is not JSON, or of a newer schema than this version reads.
    """
    try:
        with open_regular(path) as file:
            value = json.loads(file.read().decode("utf8"))
    except UserError:
        raise
    except ValueError as error:  # not JSON, or not even text
        raise UserError(
            f"{path} is not readable as JSON ({error}): restore it from a copy, or delete it to start over"
        ) from error
    version = value.get("schema_version", SCHEMA_VERSION) if isinstance(value, dict) else SCHEMA_VERSION
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {version!r}, this version reads up to {SCHEMA_VERSION}: upgrade dit-scaling"
        )
    return value


def read_record(path: Path, **fields: type) -> dict[str, Any]:
    """The dictionary in a file that `write_json` wrote, with at least these fields, of these kinds.

    Raises:
        UserError: as `read_json` does, or naming the first field that is missing or of another kind.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, expected a dictionary: restore it from a copy")
    for name, kind in fields.items():
        if not isinstance(value.get(name), kind) or isinstance(value[name], bool):
            raise UserError(
                f"{path} has {name} {str(value.get(name))[:60]!r}, expected a {kind.__name__}: restore the file from a copy"
            )
    return value


@dataclass(frozen=True)
class Study:
    """What a study asks for. `doc` is its module's docstring."""

    name: str
    doc: str
    runs: tuple[RunConfig, ...]


def check_study_folder(folder: Path, name: str) -> None:
    """Check that the study of that name may be kept in the folder; nothing is written.

    Raises:
        UserError: if the folder holds another study or a newer schema, or it or a folder above it is a file.
    """
    for part in (folder, *folder.parents):
        if part.exists() and not part.is_dir():
            raise UserError(f"{part} is a file: expected a folder for the study, choose another --out")
    path = folder / "study.json"
    if path.exists():
        present = read_record(path, study=str)
        if present["study"] != name:
            raise UserError(f"{folder} holds study '{present['study']}', not '{name}': choose another --out")
    elif (folder / "runs").exists():
        raise UserError(f"{folder} has runs but no study.json: choose another --out, or restore study.json from a copy")


def save_study(folder: Path, study: Study) -> None:
    """Record what the study asks for; a study may grow, but the folder keeps its name.

    Raises:
        UserError: as `check_study_folder` does.
    """
    check_study_folder(folder, study.name)
    path = folder / "study.json"
    value = {
        "schema_version": SCHEMA_VERSION,
        "study": study.name,
        "doc": study.doc,
        "runs": [to_json(run) for run in study.runs],
    }
    if not path.exists() or read_json(path) != json.loads(json.dumps(value)):
        write_json(path, value)


def load_study(folder: Path) -> Study:
    """The study recorded in a folder.

    Raises:
        UserError: if there is none, it is of a newer schema, or a run in it is none of this version's.
    """
    path = folder / "study.json"
    if not path.is_file():
        raise UserError(f"no study in {folder}: expected the folder that `dit sweep` wrote (it holds study.json)")
    value = read_record(path, study=str, doc=str, runs=list)
    try:
        return Study(value["study"], value["doc"], tuple(from_json(run) for run in value["runs"]))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


@contextlib.contextmanager
def exclusive(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock file at `path`; the system lets it go when this process ends, however it ends.

    Raises:
        Busy: if another process holds it, unless told to `wait`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    refuse_links(path)
    with os.fdopen(open_beneath(path.parent, path.name, os.O_RDWR | os.O_CREAT), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise Busy(str(path)) from error
        yield


@contextlib.contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """What the operating system refuses within, as the user should read it.

    Raises:
        UserError: naming the file, the reason and what to do.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        place, reason = error.filename or folder, os.strerror(error.errno)
        remedy = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable"
        raise UserError(f"{place}: {reason}; what was saved in {folder} is whole: {remedy} and run again") from error


class RunStore:
    """One run's folder. Readers may open it at any time; the worker whose `fence` lets it pass writes it."""

    def __init__(self, study_folder: Path, run: RunConfig, fence: Fence = no_fence):
        self.run, self.fence = run, fence
        self.path = run_folder(study_folder, run.run)

    def create(self) -> None:
        """Make the folder, or check that it is this run's; what a killed writer left half written is cleared.

        Raises:
            UserError: if the folder's configuration is another run's, or it is or holds a link.
        """
        self.check_place()
        self.fence()
        for pattern in (".*.json.*", "*/.*.npz.*", "evals/.*.json.*", "attempts/.[0-9]*.json.*", "drawn/.*.part.*"):
            for unfinished in self.path.glob(pattern):
                unfinished.unlink(missing_ok=True)
        for evaluation in self.run.evaluations:  # its writer may have died between the two files
            if self.evaluation_path(evaluation).exists():
                self.drawn_path(evaluation).unlink(missing_ok=True)
        path = self.path / "config.json"
        identity = {"schema_version": SCHEMA_VERSION, "hash": self.run.hash, **self.run.identity}
        if not path.exists():
            write_json(path, identity, self.fence)
        elif read_json(path) != json.loads(json.dumps(identity)):
            raise UserError(f"{path} describes another run than {self.run.run}: move that folder away")

    def check_place(self) -> None:
        """Check that writing to the run's folder writes inside the study's.

        Raises:
            UserError: if it is a link, or holds one.
        """
        refuse_links_in(self.path)

    def status(self) -> dict[str, Any]:
        """The last recorded status; `planned` for a run that has not begun."""
        path = self.path / "status.json"
        if not path.exists():
            return {"state": PLANNED, "step": 0, "attempt": 0}
        return read_record(path, state=str, step=int, attempt=int)

    def set_status(self, state: str, **fields: Any) -> None:
        """Record a status: `state` with `step`, `attempt`, and `loss` or `reason` where there is one."""
        value = {"schema_version": SCHEMA_VERSION, "state": state, "time": time.time(), **fields}
        write_json(self.path / "status.json", value, self.fence)

    def evaluation_path(self, evaluation: Evaluation) -> Path:
        """Where that evaluation's row is, or will be."""
        return self.path / "evals" / f"{evaluation.step:08d}-{evaluation.key}.json"

    def samples_path(self, evaluation: Evaluation) -> Path:
        """Where that evaluation's first samples are, or will be."""
        return self.path / "samples" / f"{evaluation.step:08d}-{evaluation.key}.npz"

    def drawn_path(self, evaluation: Evaluation) -> Path:
        """Where samples of that evaluation are kept while it is under way."""
        return self.path / "drawn" / f"{evaluation.step:08d}-{evaluation.key}.part"

    def evaluation_names(self) -> set[str]:
        """Names of the files of every evaluation on record: one look at the folder."""
        try:
            return set(os.listdir(self.path / "evals"))
        except FileNotFoundError:
            return set()

    def missing_evaluations(self) -> list[Evaluation]:
        """The run's evaluations without a row, in order of step."""
        present = self.evaluation_names()
        missing = [e for e in self.run.evaluations if self.evaluation_path(e).name not in present]
        return sorted(missing, key=lambda e: e.step)

    def is_done(self) -> bool:
        """Whether training reached its last step and every evaluation has its row."""
        status = self.status()
        return status["state"] == DONE and status["step"] >= self.run.steps and not self.missing_evaluations()

    def evaluations(self) -> list[dict[str, Any]]:
        """Every evaluation row on record, by step."""
        return [read_json(path) for path in sorted((self.path / "evals").glob("*.json"))]

    def metrics(self) -> list[dict[str, Any]]:
        """Logged rows by step, each step once: the highest attempt's."""
        return read_metrics(self.path)


def run_folder(study_folder: Path, name: str) -> Path:
    """The folder of the run of that name, which stays inside the study's.

    Raises:
        UserError: for a name that is no plain file name.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise UserError(f"{name!r} is no run's name: expected letters, digits, '_', '.' and '-' alone")
    return study_folder / "runs" / name


def read_metrics(run_folder: Path) -> list[dict[str, Any]]:
    """Rows that the attempts of one run logged, each step once (the highest attempt wins), torn last lines dropped."""
    rows = {row["step"]: row for logged in attempt_rows(run_folder).values() for row in logged}
    return [rows[step] for step in sorted(rows)]


def attempt_rows(run_folder: Path) -> dict[int, list[dict[str, Any]]]:
    """The rows of each attempt, by its number, in order; of a run that was resumed several tell of the same step."""
    paths = [path for path in (run_folder / "metrics").glob("*.jsonl") if path.stem.isdecimal()]
    return {int(path.stem): list(_lines(path)) for path in sorted(paths, key=lambda path: int(path.stem))}


_NUMBER = (float, int, type(None))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with open_regular(path) as file:
        lines = file.read().split(b"\n")
    with contextlib.suppress(ValueError):  # all at once takes half the time; where it fails, the loop finds the line
        whole = json.loads(b"[" + b",".join(filter(None, lines)) + b"]")
        if all(map(_is_metrics_row, whole)):
            yield from whole
            return
    for number, line in enumerate(lines):
        if not line:
            continue
        row: Any = None
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines) - 1:
                return  # the writer died within this line
        if not _is_metrics_row(row):
            raise UserError(
                f"{path} line {number + 1} is not a row of metrics: restore the file from a copy, or delete that line"
            )
        yield row


def _is_metrics_row(row: Any) -> bool:
    """Whether the value is a row: a dictionary with its step, and a number (or nothing) for each metric that is read back."""
    if type(row) is not dict or type(row.get("step")) is not int or type(row.get("loss")) not in _NUMBER:
        return False
    return type(row.get("images_per_s")) in _NUMBER and type(row.get("train_gflops")) in _NUMBER


class MetricsWriter:
    """Appends rows to one attempt's file, a line each, written whole in one call and synced on `sync`."""

    def __init__(self, run_folder: Path, attempt: int, fence: Fence = no_fence):
        path = run_folder / "metrics" / f"{attempt:04d}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fence = fence
        opened = open_beneath(run_folder, f"metrics/{path.name}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._file = os.fdopen(opened, "ab", buffering=0)

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; it must hold `step`."""
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        self._fence()
        written = self._file.write(line)
        if written != len(line):  # a full disk takes a part and refuses the rest
            self._file.write(line[written:])

    def sync(self) -> None:
        """Make what was written survive a power cut."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        self._file.close()
