"""How much of the time that a run's attempts took went into steps that count: those of rows that no later attempt logged again.

Read from the run's folder alone, without JAX. An attempt that was killed counts up to the last that it recorded; time between
attempts, in which nobody held the devices, does not count.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from dit.store import attempt_rows, read_json


class Goodput(NamedTuple):
    """Seconds in steps that count, seconds of all attempts together, and their ratio (0 before anything was timed)."""

    productive_s: float
    wall_s: float
    goodput: float


def goodput(run_folder: Path, batch_size: int) -> Goodput:
    """Account for all attempts at a run. A row whose steps were not timed counts at the mean rate of its attempt, or else of the run."""
    attempts = attempt_rows(run_folder)
    last_word: dict[int, int] = {row["step"]: number for number, rows in attempts.items() for row in rows}
    ends = sorted(last_word)
    length = {end: end - start for start, end in zip([0, *ends], ends)}
    rates = {number: _rate(rows) for number, rows in attempts.items()}
    run_rate = _rate([row for rows in attempts.values() for row in rows])
    productive = 0.0
    for number, rows in attempts.items():
        for row in rows:
            rate = row["images_per_s"] or rates[number] or run_rate
            if last_word[row["step"]] == number and rate:
                productive += length[row["step"]] * batch_size / rate
    wall = sum(_elapsed(run_folder, number, rows) for number, rows in attempts.items())
    wall += sum(_elapsed(run_folder, number, []) for number in _recorded(run_folder) - attempts.keys())
    return Goodput(productive, wall, productive / wall if wall else 0.0)


def _rate(rows: list[dict[str, Any]]) -> float | None:
    """Mean images per second of the rows that were timed, each as long as any other."""
    timed = [row["images_per_s"] for row in rows if row["images_per_s"]]
    return len(timed) / sum(1 / rate for rate in timed) if timed else None


def _recorded(run_folder: Path) -> set[int]:
    return {int(path.stem.removeprefix("times-")) for path in run_folder.glob("times-*.json")}


def _elapsed(run_folder: Path, number: int, rows: list[dict[str, Any]]) -> float:
    path = run_folder / f"times-{number:04d}.json"
    recorded = read_json(path)["elapsed_s"] if path.exists() else 0.0
    return max([recorded, *(row.get("elapsed_s", 0.0) for row in rows)])
