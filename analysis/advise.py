"""Advice on what to train next: cells that cannot reach the frontier, and the run that narrows a forecast most per unit of compute."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.fits.record import Interval, Note, Record
from analysis.results import StudyResults


@dataclass(frozen=True)
class Hopeless(Record):
    """A cell that stays above the frontier: score / frontier score at equal compute where it comes closest, interval above 1."""

    cell: str
    run: str
    train_gflops: float
    ratio: float
    interval: Interval
    measured: bool
    said: str


@dataclass(frozen=True)
class Candidate(Record):
    """A run that could come next: `kind` is planned, seed or longer; sd are relative, of the target's forecast, before and after."""

    kind: str
    run: str
    step: int
    cost_gflops: float
    sd_before: float
    sd_after: float
    reduction_per_gflop: float


@dataclass(frozen=True)
class Advice(Record):
    """`hopeless` cells, and `candidates` for the next run, best first, for the forecast of `target`."""

    study: str
    target: str
    form: str
    hopeless: tuple[Hopeless, ...]
    undecided: tuple[Hopeless, ...]
    candidates: tuple[Candidate, ...]
    notes: tuple[Note, ...]


def advise(study: StudyResults, target: str | None = None) -> Advice:
    """Advice for a study with a folder; `target` as in `forecast.freeze` (default: its largest cell that has no score yet)."""
    raise NotImplementedError
