"""Where a study stands: one row per cell with what it has done, what it is doing and what is left, and the study's totals.

Time left: a cell under way by the images per second that its worker tells, any other by the cells that are done (a constant and its
Gflops of training and sampling, one multiply-add a flop); the study's is the sum, divided among the workers seen at work.
"""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit.design.config import RunConfig
from dit.design.flops import scoring_gflops, train_gflops
from dit.design.metrics import in_order, is_better_higher
from dit.design.parts import nearest
from dit.design.rows import Row, field_columns, field_of, outdated, own_columns, planned_row, recipe_fields, varied
from dit.errors import UserError, plain
from dit.store import lease
from dit.store.study import DONE, FAILED, RunStore, read_evaluation
from sweeps.ledger import ENDED, HELD, Cell, Ledger, owner_name
from sweeps.progress import fit, work


@dataclass(frozen=True)
class Summary:
    """A study in a line: cells by state, seconds left (None: unknown), workers at work, silent ones, and the latest failure.

    `goodput` is of all cells whose last attempt has ended (`dit.store.goodput`); None before the first has.
    """

    cells: int
    states: dict[str, int]
    left_s: float | None
    workers: int
    stale: tuple[str, ...]
    last_failure: str
    goodput: float | None


def status_rows(ledger: Ledger, by: str | None = None) -> list[Row]:
    """A row per cell: the results table's columns as far as training has come, and the cell's state, worker and time left.

    Rows are grouped `by` a field of the runs, where one is named.

    Raises:
        UserError: if the runs have no such field.
    """
    cells = ledger.cells()
    now = storage_time(ledger.folder)
    apart = varied(ledger.study.runs)
    rows = [_row(ledger, cell, now, apart.get(cell.run.run)) for cell in cells]
    spent = [(work(cell.run), _spent_s(ledger.folder, cell)) for cell in cells if cell.state == DONE]
    spent = [pair for pair in spent if pair[1] > 0]
    rates = [row["s_per_gflop"] for row in rows if row["s_per_gflop"]]
    for row, cell in zip(rows, cells, strict=True):
        row["left_s"] = _left_s(row, cell, spent, rates)
        del row["s_per_gflop"]
    if by is None:
        return rows
    field, values = axis(ledger.study.runs, by)
    order = {repr(value): place for place, value in enumerate(dict.fromkeys(values.values()))}
    return sorted(({**row, field: values[row["run"]]} for row in rows), key=lambda row: order[repr(row[field])])


def axis(runs: Sequence[RunConfig], by: str) -> tuple[str, dict[str, Any]]:
    """A field's column, and its value in each run.

    Raises:
        UserError: if the runs have no such field.
    """
    found = field_of(runs, by)
    if found is None:
        known = field_columns({name for run in runs for name in recipe_fields(run)}).values()
        raise UserError(f"--by {by}: the runs have no such field{nearest(by, known)}")
    return found


def _row(ledger: Ledger, cell: Cell, now: float | None, apart: Row | None) -> Row:
    run, record = cell.run, RunStore(ledger.folder, cell.run)
    row = planned_row(run, ledger.study.name, cell.state, apart)
    held = cell.state in HELD and cell.attempt is not None
    live = cell.attempt.progress if held and cell.attempt else {}
    silent = _silent_s(ledger, record, cell, now) if held else None
    speed = live.get("images_per_s")
    per_step = row["train_gflops"] / run.steps
    return {
        **row,
        "step": cell.step,
        "images_seen": cell.step * run.batch_size,
        "train_gflops": per_step * cell.step,
        **_best_scores(record),
        "loss": live.get("loss", cell.status.get("loss")),
        "images_per_s": speed,
        "reason": _line(cell.reason) or None,
        "steps": run.steps,
        **{name: cell.status.get(name) for name in ("goodput", "productive_s", "wall_s")},
        "attempts": cell.attempts,
        "worker": _line(owner_name(cell.attempt)) if held and cell.attempt else None,
        "engine": _line(cell.engine) or None,
        "silent_s": silent,
        "stale": bool(silent and cell.attempt and silent > cell.attempt.lease_s),
        "s_per_gflop": run.batch_size / (speed * per_step) if speed else None,
        "time": cell.status.get("time"),
    }


def _line(text: str) -> str:
    return plain(" ".join(text.split()))


def _best_scores(record: RunStore) -> dict[str, float | None]:
    """The best score so far of each metric, under the first protocol that the cell declares for it."""
    declared = record.run.evaluations
    first = {e.column(metric): (metric, e.key) for e in reversed(declared) for metric in reversed(e.metrics)}
    present = record.evaluation_names()
    wanted = {record.evaluation_path(e): e.key for e in declared if e.key in {key for _, key in first.values()}}
    held = {path: read_evaluation(path) for path in wanted if path.name in present}
    scores = [(wanted[path], _current(record.run, value)) for path, value in held.items()]
    best: dict[str, float | None] = {}
    for column in in_order(first):
        found = [row.get(column) for key, row in scores if key == first[column][1]]
        numbers = [score for score in found if isinstance(score, int | float)]
        best[column] = (max if is_better_higher(column) else min)(numbers, default=None)
    return best


def _current(run: RunConfig, value: dict[str, Any]) -> Row:
    """Scores of an evaluation's file, but for those of the user's own metrics that other code took."""
    scores, taken = value.get("scores") or value.get("row", {}), value.get("evaluation", {})
    declared = [metric for evaluation in run.evaluations for metric in evaluation.metrics]
    gone = outdated(own_columns(taken.get("metrics", ()), taken.get("features", "")), declared)
    return {name: score for name, score in scores.items() if name not in gone}


def storage_time(folder: Path) -> float | None:
    """The present by the clock that stamps files in the folder, which may not be this host's; None if nothing can be written there."""
    path = folder / f".clock.{uuid.uuid4().hex}"
    try:
        path.touch()
        now = path.stat().st_mtime
        path.unlink()
    except OSError:
        return None
    return now


def _silent_s(ledger: Ledger, record: RunStore, cell: Cell, now: float | None) -> float | None:
    """Seconds since the worker's last heartbeat: by the storage's own clock, or as long as this process has seen it stand still."""
    assert cell.attempt is not None
    ledger.observer.is_free(cell.run.run, cell.attempt)
    seen = ledger.observer.silent_s(cell.run.run)
    path = record.path / "attempts" / f"{cell.attempt.token:04d}.json"
    try:
        return max(seen, 0.0 if now is None else now - os.stat(path).st_mtime)
    except OSError:
        return seen


def _spent_s(folder: Path, cell: Cell) -> float:
    return sum(one.held_s for one in lease.attempts(lease.run_files(RunStore(folder, cell.run).path)))


def _left_s(row: Row, cell: Cell, spent: list[tuple[float, float]], rates: list[float]) -> float | None:
    """Seconds that the cell still needs; 0 for one that has ended, None where nothing is known to judge by."""
    if cell.state in ENDED:
        return 0.0
    run, share = cell.run, cell.step / cell.run.steps
    left = train_gflops(run, run.steps) - train_gflops(run, cell.step) + scoring_gflops(run) * (1 - share)
    if row["s_per_gflop"]:
        return left * row["s_per_gflop"]
    if spent:
        constant, rate = fit(spent)
        return (constant + rate * work(run)) * left / work(run)
    return left * sum(rates) / len(rates) if rates else None


def summary(rows: list[Row]) -> Summary:
    """The study's totals."""
    states = Counter(row["status"] for row in rows)
    open_rows = [row for row in rows if row["status"] not in ENDED]
    workers = len({row["worker"] for row in rows if row["worker"] and not row["stale"]})
    left = [row["left_s"] for row in open_rows]
    known = None if any(one is None for one in left) else sum(left) / max(1, min(workers, len(left)))
    stale = tuple(
        f"{row['worker']} with {row['run']}, silent for {row['silent_s']:.0f} s" for row in rows if row["stale"]
    )
    failures = [row for row in rows if row["status"] == FAILED]
    latest = max(failures, key=lambda row: row["time"] if isinstance(row["time"], int | float) else 0.0, default=None)
    last = "" if latest is None else f"{latest['run']} at step {latest['step']}: {latest['reason']}"
    accounted = [row for row in rows if row["goodput"] is not None and row["wall_s"]]
    wall = sum(row["wall_s"] for row in accounted)
    goodput = sum(row["productive_s"] for row in accounted) / wall if wall else None
    return Summary(len(rows), dict(states), known, workers, stale, last, goodput)
