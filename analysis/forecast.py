"""Forecasts that are frozen before a cell is trained, and scored afterwards.

A forecast is a JSON file `DIR/forecasts/<date>-<name>-<hash>.json`: dated, with the hash of the rows it was made from, the form, intervals and
the form's validation error; its own hash is in it and in its name, so a changed file is found out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from analysis.fits.record import Interval, Note, Record
from analysis.fits.validation import Validation
from analysis.results import StudyResults


@dataclass(frozen=True)
class CellForecast(Record):
    """A cell's forecast at a training step: `score` is None where it is refused, with the reason in `said`."""

    run: str
    block: str
    size: str
    patch_size: int
    step: int
    params: int
    tokens: int
    images_seen: int
    gflops: float
    train_gflops: float
    score: float | None
    confidence: Interval | None
    prediction: Interval | None
    decades_beyond: float
    said: str | None


@dataclass(frozen=True)
class Forecast(Record):
    """A frozen forecast. `validation_error` is the form's median forward error, `validation` all of it."""

    schema_version: int
    created: str
    dit_version: str
    study: str
    target: str
    retrospective: bool
    metric: str
    label: str
    protocol: str
    form: str
    equation: str
    parameters: dict
    validation_error: float | None
    validation: Validation
    cells: tuple[CellForecast, ...]
    inputs_sha256: str
    inputs: int
    notes: tuple[Note, ...]
    sha256: str


@dataclass(frozen=True)
class ScoredCell(Record):
    """Forecast against measurement (mean over seeds); `error` is forecast / measured - 1."""

    run: str
    step: int
    forecast: float
    measured: float
    error: float
    inside: bool
    prediction: Interval


@dataclass(frozen=True)
class ScoredForecast(Record):
    """One forecast file scored: `tampered` if it no longer has its hash; `pending` are cells without a score yet."""

    path: str
    created: str
    target: str
    retrospective: bool
    tampered: bool
    cells: tuple[ScoredCell, ...]
    pending: tuple[str, ...]
    said: str | None


def freeze(study: StudyResults, target: str, *, retrospective: bool = False, form: str | None = None) -> Forecast:
    """Forecast the cells that `target` names (a size like XL, a cell like XL/2, or an expression over the columns of a plan)."""
    raise NotImplementedError


def score_all(study: StudyResults, folder: Path) -> list[ScoredForecast]:
    """Every forecast in `folder` against what has been measured since."""
    raise NotImplementedError
