"""How much of the time that a run's attempts took went into steps that count: those of rows that no later attempt logged again.

Read from the run's folder alone, without JAX. An attempt lasts from its claim to its end, both by its own clock (`attempts/`). One that
was killed left no end: it came after its last sign of life (a heartbeat, a row, a stop) and before the heartbeat that did not come, and
the middle of the two is taken, so that over many deaths the error averages out. Time between attempts, in which nobody held the
devices, does not count, nor does a worker's start before it claims anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from dit.store.files import read_json
from dit.store.lease import BEATS_PER_LEASE, Attempt, attempts, run_files
from dit.store.metrics import attempt_rows


class Goodput(NamedTuple):
    """Seconds in steps that count, seconds of all attempts together, and their ratio (0 before anything was timed).

    `unsure_s` says by how much `wall_s` may be wrong either way: half a heartbeat at most for each attempt that was killed.
    """

    productive_s: float
    wall_s: float
    goodput: float
    unsure_s: float = 0.0


def goodput(run_folder: Path, batch_size: int, alive: Attempt | None = None) -> Goodput:
    """Account for all attempts at a run; `alive` is the one under way as its holder knows it, later than the record on disk.

    A row says what its steps took (`step_s`); one that has only a rate counts at it, or else at the mean of its attempt or the run.
    """
    logged = attempt_rows(run_folder)
    records = {one.token: one for one in attempts(run_files(run_folder))}
    times = {number: read_json(run_folder / f"times-{number:04d}.json")["elapsed_s"] for number in _timed(run_folder)}
    wall = unsure = 0.0
    for number in records.keys() | times.keys() | logged.keys():
        seen = max([times.get(number, 0.0), *(row.get("elapsed_s", 0.0) for row in logged.get(number, []))])
        if alive is not None and number == alive.token:
            seconds, gap = alive.held_s, 0.0
        else:
            seconds, gap = _length(records.get(number), seen)
        wall, unsure = wall + seconds, unsure + gap
    productive = _productive(logged, batch_size)
    return Goodput(productive, wall, productive / wall if wall else 0.0, unsure)


def _length(record: Attempt | None, seen: float) -> tuple[float, float]:
    """Seconds that an attempt lasted which showed its last sign of life, heartbeats aside, after `seen`; and how unsure that is."""
    if record is None or record.beat < 0:  # no attempt is on record, or it cannot be read
        return seen, 0.0
    if record.ended:
        return record.held_s, 0.0
    between = record.lease_s / BEATS_PER_LEASE
    if record.beat:
        between = max(between, record.held_s / record.beat)  # as they came, on a slow disk or a busy machine
    last = max(seen, record.held_s)
    gap = max(0.0, record.held_s + between - last) / 2
    return last + gap, gap


def _productive(logged: dict[int, list[dict[str, Any]]], batch_size: int) -> float:
    """Seconds in the steps of rows that no later attempt logged again."""
    last_word: dict[int, int] = {row["step"]: number for number, rows in logged.items() for row in rows}
    ends = sorted(last_word)
    length = {end: end - start for start, end in zip([0, *ends], ends)}
    rates = {number: _rate(rows) for number, rows in logged.items()}
    run_rate = _rate([row for rows in logged.values() for row in rows])
    seconds = 0.0
    for number, rows in logged.items():
        for row in rows:
            if last_word[row["step"]] != number:
                continue
            rate = row["images_per_s"] or rates[number] or run_rate
            if "step_s" in row:
                seconds += row["step_s"]
            elif rate:
                seconds += length[row["step"]] * batch_size / rate
    return seconds


def _rate(rows: list[dict[str, Any]]) -> float | None:
    """Mean images per second of the rows that were timed, each as long as any other."""
    timed = [row["images_per_s"] for row in rows if row["images_per_s"]]
    return len(timed) / sum(1 / rate for rate in timed) if timed else None


def _timed(run_folder: Path) -> set[int]:
    return {int(path.stem.removeprefix("times-")) for path in run_folder.glob("times-*.json")}
