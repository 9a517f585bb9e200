"""Run what is missing of a study: the declaration against what the folder already holds."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit.config import RunArguments, RunConfig
from dit.errors import UserError
from dit.store import FAILED, Busy, RunStore, Study, check_study_folder, exclusive, read_json, save_study
from sweeps.local import run_cells
from sweeps.progress import Progress, work

ACCELERATORS = ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0", "/dev/kfd")


@dataclass(frozen=True)
class Outcome:
    """Cells asked for, and how many of them are done and failed now."""

    cells: int
    done: int
    failed: int


def default_workers() -> int:
    """One worker per processor, eight at most; one in all where an accelerator is to be shared."""
    if os.environ.get("JAX_PLATFORMS", "") != "cpu" and any(os.path.exists(path) for path in ACCELERATORS):
        return 1
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, 8)


def sweep(
    study: Study,
    runs: tuple[RunConfig, ...],
    folder: Path,
    arguments: RunArguments,
    workers: int,
    retry_failed: bool,
    tell: Callable[[str], None],
) -> Outcome:
    """Bring the chosen cells of a study to their end, the longest first; what is done already is not touched.

    A cell that failed before is left failed unless `retry_failed`.

    Raises:
        UserError: if the folder is another study's, a file, of a newer schema, or in use by another sweep.
    """
    check_study_folder(folder, study.name)
    try:
        with exclusive(folder / ".lock"):
            save_study(folder, study)
            records = [RunStore(folder, run) for run in runs]
            done = {record.run.run for record in records if record.is_done()}
            failed = {record.run.run for record in records if record.status()["state"] == FAILED}
            left_out = set() if retry_failed else failed
            missing = [run for run in runs if run.run not in done | left_out]
            if missing:
                missing.sort(key=work, reverse=True)
                progress = Progress(missing, len(done))
                try:
                    run_cells(folder, study.name, missing, arguments, workers, progress)
                finally:
                    progress.close()
            elif left_out:
                tell(f"{len(left_out)} failed before and were left so: --retry-failed runs them again")
            states = [record.is_done() for record in records]
            now_failed = sum(record.status()["state"] == FAILED for record in records)
            return Outcome(len(runs), sum(states), now_failed)
    except Busy as error:
        raise UserError(
            f"another sweep is running in {folder}: wait for it, or watch it with `dit status {folder} --watch`"
        ) from error


def statuses(study: Study, folder: Path) -> list[dict[str, Any]]:
    """Each cell's state, last step and loss, and best score so far under the first protocol that it declares for the metric."""
    rows = []
    for run in study.runs:
        record = RunStore(folder, run)
        status = record.status()
        first = {e.metric: e.key for e in reversed(run.evaluations)}
        best = {metric: _best(record, metric, key) for metric, key in sorted(first.items())}
        rows.append({"run": run, "status": status, "best": best, "done": record.is_done()})
    return rows


def _best(record: RunStore, metric: str, key: str) -> float | None:
    paths = [record.evaluation_path(e) for e in record.run.evaluations if (e.metric, e.key) == (metric, key)]
    return min((read_json(path)["row"][metric] for path in paths if path.exists()), default=None)
