"""One form fitted to scores: parameters with intervals, predictions with bands, and curves to draw.

`fit_law` returns a `LawFit`. To plot it: `LawFit.curve("train_gflops")` (or any variable of the form, the others held) gives a
`record.Curve` with `x`, `y`, a confidence band (where the law is) and a prediction band (where a new run's score falls).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from analysis.fits.observations import Observations
from analysis.fits.record import Curve, Interval, Note, Parameter, Record


class NotIdentified(Exception):
    """The data cannot determine this form; the message is the one-line reason."""


@dataclass(frozen=True)
class Refusal(Record):
    """A form that was not fitted, and why."""

    form: str
    reason: str


@dataclass(frozen=True)
class Noise(Record):
    """Relative standard deviation between two trainings of one cell, and where it comes from."""

    relative_sd: float
    source: str
    degrees_of_freedom: int | None = None


@dataclass(frozen=True)
class Prediction(Record):
    """A predicted score: `confidence` is of the law, `prediction` of one new run's score. `decades_beyond`: see diagnostics."""

    score: float
    confidence: Interval
    prediction: Interval
    decades_beyond: float


@dataclass(frozen=True)
class LawFit(Record):
    """A fitted law. `equation` is in the symbols of `parameters`; `residual_sd` is relative (of log scores)."""

    form: str
    equation: str
    variables: tuple[str, ...]
    block: str | None
    metric: str
    label: str
    parameters: tuple[Parameter, ...]
    points: int
    runs: int
    cells: int
    loss: str
    residual_sd: float
    noise: Noise
    notes: tuple[Note, ...]

    def predict(self, columns: Mapping[str, np.ndarray]) -> list[Prediction]:
        """Predictions at cells given by columns of the results table (`params`, `tokens`, `images_seen`, `train_gflops`)."""
        raise NotImplementedError

    def curve(self, variable: str, points: int = 100, reach: float = 1.0, **held: float) -> Curve:
        """The law along `variable`, `reach` decades past the data; other variables at `held` (default: their largest measured value)."""
        raise NotImplementedError


def fit_law(
    observations: Observations, form: str, *, loss: str = "huber", replicates: int = 1000, seed: int = 0
) -> LawFit:
    """Fit one of `laws.FORMS`. Deterministic.

    Raises:
        NotIdentified: if the data have too few levels or points for the form.
    """
    raise NotImplementedError
