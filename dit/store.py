"""The record of runs: plain files in a study's folder, one writer per file, readable without JAX.

    DIR/study.json                       what the study asks for: its cells with steps and evaluations
    DIR/runs/<run>/config.json           the run's identity, immutable
    DIR/runs/<run>/environment-<n>.json  versions, git revision and device of attempt n
    DIR/runs/<run>/metrics/<n>.jsonl     rows logged by attempt n: step, loss, grad_norm, images_per_s, train_gflops
    DIR/runs/<run>/evals/<step>-<key>.json   one row of the results table with its protocol
    DIR/runs/<run>/samples/<step>-<key>.npz  the first samples of that evaluation (NHWC uint8, with labels)
    DIR/runs/<run>/status.json           state, step, loss, attempt, reason
    DIR/runs/<run>/checkpoints/, ema/    see `dit.checkpoint`

A whole file is written beside its place and renamed, so a reader never sees half of one; a torn last metrics line is dropped. An
attempt that resumes logs some steps again: the highest attempt's row wins.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit.config import Evaluation, RunConfig, from_json, to_json
from dit.errors import UserError

SCHEMA_VERSION = 1

PLANNED, RUNNING, DONE, FAILED = "planned", "running", "done", "failed"


def write_json(path: Path, value: Any) -> None:
    """Write `value` whole or not at all: beside its place, synced, then renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(beside, "w", encoding="utf8") as file:
        json.dump(value, file, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def read_json(path: Path) -> Any:
    """The value in a file that `write_json` wrote.

    Raises:
        UserError: if the file is not JSON, or of a newer schema than this version reads.
    """
    try:
        value = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:  # not JSON, or not even text
        raise UserError(
            f"{path} is not readable as JSON ({error}): restore it from a copy, or delete it to start over"
        ) from error
    if isinstance(value, dict) and value.get("schema_version", SCHEMA_VERSION) > SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {value['schema_version']}, this version reads up to {SCHEMA_VERSION}: upgrade dit-scaling"
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
        present = read_json(path)
        if present.get("study") != name:
            raise UserError(f"{folder} holds study '{present.get('study')}', not '{name}': choose another --out")
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
        UserError: if there is none, or it is of a newer schema.
    """
    path = folder / "study.json"
    if not path.is_file():
        raise UserError(f"no study in {folder}: expected the folder that `dit sweep` wrote (it holds study.json)")
    value = read_json(path)
    return Study(value["study"], value["doc"], tuple(from_json(run) for run in value["runs"]))


class Busy(Exception):
    """Another process holds the lock."""


@contextlib.contextmanager
def exclusive(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock file at `path`; the system lets it go when this process ends, however it ends.

    Raises:
        Busy: if another process holds it, unless told to `wait`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise Busy(str(path)) from error
        yield


class RunStore:
    """One run's folder. Readers may open it at any time; one worker writes it."""

    def __init__(self, study_folder: Path, run: RunConfig):
        self.run = run
        self.path = study_folder / "runs" / run.run

    def create(self) -> None:
        """Make the folder, or check that it is this run's.

        Raises:
            UserError: if the folder's configuration is another run's.
        """
        path = self.path / "config.json"
        identity = {"schema_version": SCHEMA_VERSION, "hash": self.run.hash, **self.run.identity}
        if not path.exists():
            write_json(path, identity)
        elif (present := read_json(path)).get("hash") != self.run.hash or present != json.loads(json.dumps(identity)):
            raise UserError(f"{path} describes another run than {self.run.run}: move that folder away")

    def status(self) -> dict[str, Any]:
        """The last recorded status; `planned` for a run that has not begun."""
        path = self.path / "status.json"
        return read_json(path) if path.exists() else {"state": PLANNED, "step": 0, "attempt": 0}

    def set_status(self, state: str, **fields: Any) -> None:
        """Record a status: `state` with `step`, `attempt`, and `loss` or `reason` where there is one."""
        write_json(
            self.path / "status.json", {"schema_version": SCHEMA_VERSION, "state": state, "time": time.time(), **fields}
        )

    def evaluation_path(self, evaluation: Evaluation) -> Path:
        """Where that evaluation's row is, or will be."""
        return self.path / "evals" / f"{evaluation.step:08d}-{evaluation.key}.json"

    def samples_path(self, evaluation: Evaluation) -> Path:
        """Where that evaluation's first samples are, or will be."""
        return self.path / "samples" / f"{evaluation.step:08d}-{evaluation.key}.npz"

    def missing_evaluations(self) -> list[Evaluation]:
        """The run's evaluations without a row, in order of step."""
        missing = [e for e in self.run.evaluations if not self.evaluation_path(e).exists()]
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


def read_metrics(run_folder: Path) -> list[dict[str, Any]]:
    """Rows that the attempts of one run logged, each step once (the highest attempt wins), torn last lines dropped."""
    rows: dict[int, dict[str, Any]] = {}
    for path in sorted((run_folder / "metrics").glob("*.jsonl")):
        for row in _lines(path):
            rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    lines = path.read_bytes().split(b"\n")
    with contextlib.suppress(ValueError):  # all at once takes half the time; where it fails, the loop finds the line
        whole = json.loads(b"[" + b",".join(filter(None, lines)) + b"]")
        yield from whole
        return
    for number, line in enumerate(lines):
        if not line:
            continue
        try:
            yield json.loads(line)
        except ValueError as error:
            if number == len(lines) - 1:
                return  # the writer died within this line
            raise UserError(
                f"{path} line {number + 1} is not JSON: restore the file from a copy, or delete that line"
            ) from error


class MetricsWriter:
    """Appends rows to one attempt's file, a line each, flushed as it goes and synced on `sync`."""

    def __init__(self, run_folder: Path, attempt: int):
        path = run_folder / "metrics" / f"{attempt:04d}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab")  # noqa: SIM115  # closed by close()

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; it must hold `step`."""
        self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Make what was written survive a power cut."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        self._file.close()
