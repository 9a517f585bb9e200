"""The record of runs: plain files in a study's folder, one writer per file, readable without JAX.

    DIR/study.json                       what the study asks for: its cells with steps and evaluations, its own parts as data
    DIR/study.py, DIR/study/             the user's file that declared it and those that it imports, see `dit.store.kept`
    DIR/runs/<run>/config.json           the run's identity, immutable
    DIR/runs/<run>/environment-<n>.json  versions, git revision and device of attempt n
    DIR/runs/<run>/metrics/<n>.jsonl     rows logged by attempt n, see `dit.store.metrics`
    DIR/runs/<run>/evals/<step>-<key>.json   an evaluation with its scores, protocol and floor
    DIR/runs/<run>/samples/<step>-<key>.npz  the first samples of that evaluation (NHWC uint8, with labels)
    DIR/runs/<run>/drawn/<step>-<key>.part   samples of an evaluation under way, see `dit.score.kept_samples`
    DIR/runs/<run>/status.json           state, step, loss, attempt, reason, and how many rows were logged
    DIR/runs/<run>/attempts/<n>.json     who holds the run and how attempts ended, see `dit.store.lease`
    DIR/arguments.json                   how its runs are carried out: the arguments that workers take where theirs are silent
    DIR/runs/<run>/checkpoints/, ema/    see `dit.train.checkpoint`

Files are written whole and records carry a digest, see `dit.store.files`. An attempt that resumes logs some steps again: the highest
attempt's row wins. Before each write of a run's files its fence is asked whether this process still holds the run; a writer that has
lost it raises `dit.store.lease.LeaseLost` and changes nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dit.design.config import Evaluation, RunConfig, from_json, to_json
from dit.design.parts import Part
from dit.design.rows import recorded_metrics
from dit.errors import UserError
from dit.store.files import (
    NUMBER,
    SCHEMA_VERSION,
    Fence,
    leftovers,
    no_fence,
    read_json,
    read_record,
    read_vouched,
    remedy,
    remove,
    require_fields,
    write_json,
    write_text,
)
from dit.store.kept import hashes, read_parts, told
from dit.store.lease import Busy
from dit.store.metrics import MetricsWriter, read_metrics
from dit.store.paths import open_beneath, refuse_links, refuse_links_in

EVALUATION_VERSION = 2
"""Schema of an evaluation's file, whose row was whole in it in schema 1."""
PLANNED, RUNNING, DONE, FAILED = "planned", "running", "done", "failed"
RETRYABLE = "retryable"
"""A run that stopped before its end and goes on from its last checkpoint when it is claimed again."""


def vouched_evaluation(path: Path) -> tuple[dict[str, Any], bool]:
    """An evaluation's file, and whether it has a digest: `row`, or since schema 2 `evaluation` and `scores`; `protocol` and floor.

    Raises:
        UserError: as `read_record` does.
    """
    value, vouched = read_vouched(path, EVALUATION_VERSION)
    kinds: dict[str, Any] = (
        {"row": dict} if isinstance(value, dict) and "row" in value else {"evaluation": dict, "scores": dict}
    )
    return require_fields(value, path, protocol=dict, **kinds), vouched


def read_evaluation(path: Path) -> dict[str, Any]:
    """As `vouched_evaluation`, without the word on the digest."""
    return vouched_evaluation(path)[0]


@dataclass(frozen=True)
class Study:
    """What a study asks for. `doc` is its module's docstring; `parts` are the user's own, `files` the text of the files that make them."""

    name: str
    doc: str
    runs: tuple[RunConfig, ...]
    parts: tuple[Part, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)


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
    present = read_json(path) if path.exists() else None
    before = present or {}
    own = (
        study.parts if study.files else ()
    )  # of a study that was read from its folder the record says more than what was read
    parts = told(own, study.runs, before.get("parts", []))
    files = hashes(study.files) or before.get("files", {})
    value = {
        "schema_version": SCHEMA_VERSION,
        "study": study.name,
        "doc": study.doc,
        "runs": [to_json(run) for run in study.runs],
        **({"parts": parts} if parts else {}),
        **({"files": files} if files else {}),
    }
    if present != json.loads(json.dumps(value)):
        for name, text in study.files.items():
            refuse_links(folder / name)
            write_text(folder / name, text)
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
        parts = read_parts(value.get("parts", []))
        return Study(value["study"], value["doc"], tuple(from_json(run) for run in value["runs"]), parts)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def hidden_runs(folder: Path, known: Collection[str]) -> list[str]:
    """Names of the finished runs in a study's folder that are none of those known."""
    place = folder / "runs"
    names = sorted(set(os.listdir(place) if place.is_dir() else ()) - set(known))
    return [name for name in names if _is_finished(place / name / "status.json")]


def _is_finished(path: Path) -> bool:
    try:
        return read_record(path, state=str)["state"] == DONE
    except (OSError, UserError):
        return False


def require_growth(folder: Path, study: Study) -> None:
    """Check that recording this study hides no finished run that the recorded one asks for.

    Raises:
        UserError: with their number.
    """
    if not (folder / "study.json").exists():
        return
    known = {run.run for run in load_study(folder).runs}
    if lost := [name for name in hidden_runs(folder, [run.run for run in study.runs]) if name in known]:
        raise UserError(
            f"{folder} has {len(lost)} finished run(s) that this study does not ask for, {lost[0]} among them, and would hide "
            "them: sweep the study that has them, choose another --out, or give --allow-shrink"
        )


def know_parts(folder: Path) -> None:
    """Make the parts on record in a study's folder known: how they are called, drawn and counted."""
    read_parts(read_json(folder / "study.json").get("parts", []) if (folder / "study.json").is_file() else [])


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
        raise UserError(
            f"{place}: {reason}; what was saved in {folder} is whole: {remedy(error)} and run again"
        ) from error


_NUMBERS = ("loss", "time", "goodput", "productive_s", "wall_s")
_OPTIONAL = {**dict.fromkeys(_NUMBERS, NUMBER), "reason": str, "metrics": dict}


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
        for unfinished in leftovers(self.path):
            remove(unfinished)
        wanted = {self.drawn_path(evaluation) for evaluation in self.missing_evaluations()}
        for path in {*(self.path / "drawn").glob("*.part")} - wanted:  # their writer died between the two files
            path.unlink(missing_ok=True)
        if not (self.path / "config.json").exists():
            write_json(self.path / "config.json", self._identity, self.fence)
        self.check_identity()

    @property
    def _identity(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, "hash": self.run.hash, **self.run.identity}

    def check_identity(self) -> None:
        """Check that the folder's configuration is this run's; raises as `create` does."""
        path = self.path / "config.json"
        if read_json(path) != json.loads(json.dumps(self._identity)):
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
        return read_record(path, _OPTIONAL, state=str, step=int, attempt=int)

    def set_status(self, state: str, metrics: dict[str, Any] | None = None, **fields: Any) -> None:
        """Record a status: `state` with `step`, `attempt`, and `loss` or `reason` where there is one.

        `metrics` tells the end of the rows logged so far (`MetricsWriter.end`); without it what was told before stays.
        """
        value = {"schema_version": SCHEMA_VERSION, "state": state, "time": time.time(), **fields}
        if metrics := metrics or self.status().get("metrics"):
            value["metrics"] = metrics
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
        """By step, the evaluations without a file, or with one that lacks a metric; it is opened where more than one is asked for."""
        present = self.evaluation_names()
        missing = [
            e
            for e in self.run.evaluations
            if self.evaluation_path(e).name not in present or (len(e.metrics) > 1 and self.missing_metrics(e))
        ]
        return sorted(missing, key=lambda e: e.step)

    def missing_metrics(self, evaluation: Evaluation) -> tuple[str, ...]:
        """Metrics of an evaluation that are not on record."""
        path = self.evaluation_path(evaluation)
        taken = recorded_metrics(read_evaluation(path)) if path.exists() else ()
        return tuple(metric for metric in evaluation.metrics if metric not in taken)

    def is_done(self) -> bool:
        """Whether training reached its last step and every evaluation has its row."""
        status = self.status()
        return status["state"] == DONE and status["step"] >= self.run.steps and not self.missing_evaluations()

    def evaluations(self) -> list[dict[str, Any]]:
        """What every evaluation's file on record holds, by step."""
        return [read_evaluation(path) for path in sorted((self.path / "evals").glob("*.json"))]

    def metrics(self) -> list[dict[str, Any]]:
        """Logged rows by step, each step once: the highest attempt's."""
        return read_metrics(self.path, self.status().get("metrics"))

    def metrics_writer(self, attempt: int) -> MetricsWriter:
        """What appends the rows of that attempt."""
        return MetricsWriter(self.path, attempt, self.fence, self.status().get("metrics"))


def run_folder(study_folder: Path, name: str) -> Path:
    """The folder of the run of that name, which stays inside the study's.

    Raises:
        UserError: for a name that is no plain file name.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise UserError(f"{name!r} is no run's name: expected letters, digits, '_', '.' and '-' alone")
    return study_folder / "runs" / name
