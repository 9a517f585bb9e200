"""Forward-chained validation: fit on the small sizes, predict the next one, for every form; the errors choose the form."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.fits.fit import LawFit, Refusal
from analysis.fits.observations import Observations
from analysis.fits.record import Record


@dataclass(frozen=True)
class HeldOut(Record):
    """One held-out score: predicted from the smaller sizes. `error` is predicted / measured - 1; `inside`: in the prediction interval."""

    cell: str
    predicted: float
    measured: float
    error: float
    inside: bool


@dataclass(frozen=True)
class Fold(Record):
    """One fold: `fitted_on` (sizes) -> `predicted` (size)."""

    fitted_on: tuple[str, ...]
    predicted: str
    held_out: tuple[HeldOut, ...]


@dataclass(frozen=True)
class FormValidation(Record):
    """One form's folds. `median_error` and `max_error` are of |error| over all held-out scores; None if no fold could be fitted."""

    form: str
    equation: str
    folds: tuple[Fold, ...]
    refusals: tuple[Refusal, ...]
    median_error: float | None
    max_error: float | None
    leave_one_out_median: float | None
    leave_one_out_max: float | None
    leave_one_size_out_median: float | None


@dataclass(frozen=True)
class Validation(Record):
    """All forms, and the one with the smallest median forward error; `reason` says why it was chosen (or that none could be)."""

    forms: tuple[FormValidation, ...]
    chosen: str | None
    reason: str


@dataclass(frozen=True)
class ChosenLaw(Record):
    """The law of the form that validation chose, fitted to all sizes, with that validation beside it."""

    fit: LawFit | None
    validation: Validation


def validate(observations: Observations, forms: tuple[str, ...] | None = None, loss: str = "huber") -> Validation:
    """Forward-chain every form over the sizes in order of their parameters."""
    raise NotImplementedError
