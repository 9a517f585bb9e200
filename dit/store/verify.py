"""What a study's folder is worth: every file looked at, what is damaged, missing or foreign named, and what may be mended mended.

A record is sound if its digest is that of its content, rows if they follow one another to the end that the run's status tells, a
checkpoint if its files are those of its manifest. Mending never changes a file: what is damaged is moved aside (`NAME.damaged-0`), and
a run that lacks something then goes back to its last sound state, from which it is trained or scored again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dit.design.config import RunConfig
from dit.errors import UserError
from dit.store import manifest
from dit.store.files import NO_DIGEST, leftovers, read_json, read_vouched, remove
from dit.store.kept import FILE, FOLDER, checked
from dit.store.lease import Attempt, attempts, is_gone, run_files
from dit.store.metrics import read_logged
from dit.store.study import DONE, EVALUATION_VERSION, RETRYABLE, RunStore, load_study

DAMAGED, MISSING, FOREIGN, LEFTOVER, OLD = "damaged", "missing", "foreign", "leftover", "old"
_STUDY_FILES = re.compile(
    r"study(\.json|\.py)?|arguments\.(json|seal)|runs|cache|figures|forecasts|logs|queues|\.lock|[^.].*\.(html|csv|json|md)"
)
_RUN_FILES = re.compile(
    r"(config|status|data|imported)\.json|(environment|times)-\d+\.json|wandb|attempts|attempts/(\d+|cancel|retry)\.json"
    r"|metrics|metrics/(\d+\.jsonl|unfinished\.json)|evals|evals/[^.].*\.json|samples|samples/[^.].*\.npz"
    r"|drawn|drawn/[^.].*\.part|(checkpoints|ema)(/\d+)?|.*\.(damaged|corrupt)-\d+"
)


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was written: its file, kind and story, and what mends it, if that is safe."""

    path: Path
    kind: str
    said: str
    mend: Callable[[], str] | None = None


def verify(folder: Path) -> list[Finding]:
    """Everything about the study in the folder that is not as it was written, in order of its files.

    Raises:
        UserError: if there is no study.
    """
    if not (folder / "study.json").exists():
        load_study(folder)
    found = [Finding(path, LEFTOVER, "half written", _removing(path)) for path in leftovers(folder / "queues")]
    found += [_foreign(path) for path in sorted(folder.iterdir()) if not _STUDY_FILES.fullmatch(path.name)]
    for path in (folder / "arguments.json", *sorted((folder / "queues").glob("*.json"))):
        found += _record(path) if path.exists() else []
    try:
        runs = {run.run: run for run in load_study(folder).runs}
        found += [*_record(folder / "study.json"), *_kept_files(folder)]
    except UserError as error:
        return [Finding(folder / "study.json", DAMAGED, str(error)), *found]
    present = sorted((folder / "runs").iterdir()) if (folder / "runs").is_dir() else []
    for path in present:
        if path.name not in runs:
            found.append(Finding(path, FOREIGN, "no run of study.json"))
        elif path.is_symlink() or not path.is_dir():
            found.append(_foreign(path))
        else:
            found += _Run(folder, runs[path.name]).findings()
    return found


def _kept_files(folder: Path) -> Iterator[Finding]:
    """The user's files beside the study that are not those that were swept, or none of its own."""
    expected = read_json(folder / "study.json").get("files", {})
    for name, sha256 in expected.items():
        try:
            checked(folder, {name: sha256})
        except UserError as error:
            yield Finding(folder / name, DAMAGED, str(error))
    there = [folder / FILE, *sorted((folder / FOLDER).rglob("*"))]
    known = {folder / name for name in expected} | {one for name in expected for one in (folder / name).parents}
    yield from (_foreign(path) for path in there if path.exists() and path not in known and path.name != "__pycache__")


def repair(findings: list[Finding]) -> Iterator[str]:
    """Mend what can be, telling each thing that was done."""
    for finding in findings:
        if finding.mend is not None:
            yield finding.mend()


def _foreign(path: Path) -> Finding:
    return Finding(path, FOREIGN, "nothing that a study keeps here")


def _removing(path: Path) -> Callable[[], str]:
    def mend() -> str:
        remove(path)
        return f"removed {path}"

    return mend


def _aside(path: Path) -> str:
    number = 0
    while (place := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    os.rename(path, place)
    return f"moved {path} to {place.name}"


def _record(path: Path) -> list[Finding]:
    try:
        vouched = read_vouched(path, EVALUATION_VERSION)[1]
    except (OSError, UserError) as error:
        return [Finding(path, DAMAGED, str(error))]
    return [] if vouched else [Finding(path, OLD, NO_DIGEST)]


class _Run:
    """One run's folder."""

    def __init__(self, folder: Path, run: RunConfig):
        self.run, self.record = run, RunStore(folder, run)
        self.path = self.record.path
        last: list[Attempt] = []
        with contextlib.suppress(UserError):  # one that is no file is told of below
            last = attempts(run_files(self.path))[-1:]
        self.is_held = bool(last and last[0].owner and not last[0].ended and not is_gone(last[0].owner))

    def findings(self) -> list[Finding]:
        """What is not as it was written; nothing is offered to be mended while a worker holds the run."""
        found = [*self._files(), *self._checkpoints(), *self._rows(), *self._missing()]
        if self.is_held and not self._is_done():
            found = [Finding(one.path, one.kind, f"{one.said} (a worker holds the run)") for one in found]
        return found

    def _is_done(self) -> bool:
        try:
            return self.record.is_done()
        except UserError:
            return False

    def _files(self) -> Iterator[Finding]:
        left = set(leftovers(self.path)) | set(self.path.glob("*/.*.writing-*"))
        yield from (Finding(path, LEFTOVER, "half written", _removing(path)) for path in sorted(left))
        for path in sorted(one for pattern in ("*", "*/*") for one in self.path.glob(pattern)):
            name = str(path.relative_to(self.path))
            if path in left or re.fullmatch(r"wandb/.*|.*\.(damaged|corrupt)-\d+/.*", name):
                continue
            if not _RUN_FILES.fullmatch(name) or path.is_symlink():
                yield _foreign(path)
            elif path.suffix == ".json":
                yield from (self._mended(one) for one in self._record(path))
            elif path.suffix in (".npz", ".part") and (said := _damage(path)):
                yield self._mended(Finding(path, DAMAGED, said))

    def _record(self, path: Path) -> list[Finding]:
        found = _record(path)
        if path.name in ("config.json", "status.json") and all(one.kind == OLD for one in found):
            try:
                self.record.status() if path.name == "status.json" else self.record.check_identity()
            except UserError as error:
                return [Finding(path, DAMAGED, str(error))]
        return found

    def _mended(self, finding: Finding) -> Finding:
        if finding.kind != DAMAGED:
            return finding
        return Finding(finding.path, DAMAGED, finding.said, lambda: _aside(finding.path))

    def _checkpoints(self) -> Iterator[Finding]:
        for path in sorted(one for kind in ("checkpoints", "ema") for one in (self.path / kind).glob("[0-9]*")):
            if not path.name.isdecimal() or path.is_symlink():
                continue
            try:
                manifest.verify(path, self.run.hash)
            except (OSError, UserError, manifest.Corrupt) as error:
                yield self._mended(Finding(path, DAMAGED, str(error)))

    def _rows(self) -> Iterator[Finding]:
        try:
            logged = read_logged(self.path, self._end())
        except (OSError, UserError) as error:
            path = next(
                (one for one in sorted(self.path.glob("metrics/*.jsonl")) if str(one) in str(error)),
                self.path / "metrics",
            )
            yield Finding(path, DAMAGED, str(error), self._go_back)
            return
        yield from (Finding(one.path, OLD, NO_DIGEST) for one in logged.values() if one.rows and not one.chained)

    def _end(self) -> dict | None:
        try:
            return self.record.status().get("metrics")
        except UserError:
            return None

    def _go_back(self) -> str:
        """Move aside the rows that cannot be trusted and the checkpoints beyond the last row that can."""
        numbers = sorted(int(path.stem) for path in self.path.glob("metrics/*.jsonl") if path.stem.isdecimal())
        sound = 0
        for number in numbers:
            try:
                rows = read_logged(self.path, last=number)[number].rows
            except (OSError, UserError):
                break
            sound = max([sound, *(row["step"] for row in rows)])
        else:
            sound, number = 0, min(numbers, default=0)  # all that is there is sound, but some at an end is missing
        done = [_aside(self.path / "metrics" / f"{one:04d}.jsonl") for one in numbers if one >= number]
        kept = 0
        for path in sorted((self.path / "checkpoints").glob("[0-9]*")):
            if path.name.isdecimal() and int(path.name) > sound:
                done.append(_aside(path))
            elif path.name.isdecimal():
                kept = int(path.name)
        attempt = max([0, *numbers, *(one.token for one in attempts(run_files(self.path)))])
        with contextlib.suppress(FileNotFoundError):
            (self.path / "status.json").unlink()
        self.record.set_status(RETRYABLE, step=kept, attempt=attempt, reason="set back by `dit verify --repair`")
        return "; ".join([*done, f"{self.run.run} goes on from step {kept}"])

    def _missing(self) -> Iterator[Finding]:
        try:
            status = self.record.status()
        except UserError:
            return
        if status["state"] == DONE and status["step"] >= self.run.steps:
            for evaluation in self.record.missing_evaluations():
                said = "its row is missing: `dit sweep` scores it again"
                yield Finding(self.record.evaluation_path(evaluation), MISSING, said)
        for name in ("config.json",) * (status["attempt"] > 0):
            if not (self.path / name).exists():
                yield Finding(self.path / name, MISSING, "the run's identity is not on record")


def _damage(path: Path) -> str:
    """What is wrong with an archive or with kept samples; empty if nothing is."""
    try:
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                bad = archive.testzip()
            return f"{bad} in it has changed since it was written" if bad else ""
        data = path.read_bytes()
        return "" if hashlib.sha256(data[32:]).digest() == data[:32] else "has changed since it was written"
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        return f"cannot be read ({error})"
