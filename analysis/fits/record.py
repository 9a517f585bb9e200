"""Small results types that every fit shares: they are frozen, hold plain numbers, and turn themselves into JSON.

A number that the data do not determine is `None`, with the reason beside it: it is never printed as if it had been measured.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr

LEVEL = 0.95
"""Nominal level of every interval and band, two-sided."""
_ROUNDING = 1e-8  # relative width below which an interval is no more than rounding
_HALVINGS = 40


HIDDEN: dict[str, Any] = {"repr": False, "compare": False, "metadata": {"json": False}}
"""Options of a field that stays out of JSON, comparison and `repr`: working arrays."""


def as_json(value: Any) -> Any:
    """A value as JSON: records become dictionaries, arrays lists, numbers that are not finite `None`."""
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, dict):
        return {str(key): as_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [as_json(one) for one in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


class Record:
    """A frozen dataclass that can be written as JSON at full precision."""

    def to_json(self) -> dict[str, Any]:
        """Every field by name, less the working arrays."""
        fields = [one for one in dataclasses.fields(self) if one.metadata.get("json", True)]  # type: ignore[arg-type]
        return {one.name: as_json(getattr(self, one.name)) for one in fields}


@dataclass(frozen=True)
class Interval(Record):
    """Two-sided interval at `level`."""

    low: float
    high: float
    level: float = LEVEL

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:.4g} to {self.high:.4g}"


@dataclass(frozen=True)
class Parameter(Record):
    """A fitted number. `value` is None where the data do not determine it; `said` then tells why, and may comment otherwise."""

    name: str
    value: float | None
    interval: Interval | None
    said: str | None = None
    meaning: str = ""

    @property
    def remark(self) -> str:
        """The first words of `said`, such as "hardly identified"; empty where there is none."""
        return (self.said or "").partition(":")[0]


@dataclass(frozen=True)
class Note(Record):
    """Something a reader must know beside a number. `kind`: at_bound, too_few_levels, extrapolation, trend, leverage, not_monotone,
    one_cell, bootstrap, noise, edge, disagreement, local, robust, young, validation."""

    kind: str
    text: str


@dataclass(frozen=True)
class Curve(Record):
    """A law drawn along one axis: `x` and `y` with a confidence band (of the law) and a prediction band (of a new run's score).

    All tuples are equally long. `measured` is the range of `x` that was measured: outside it the curve is an extrapolation.
    """

    name: str
    x_name: str
    y_name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    confidence_low: tuple[float, ...]
    confidence_high: tuple[float, ...]
    prediction_low: tuple[float, ...]
    prediction_high: tuple[float, ...]
    measured: tuple[float, float]
    level: float = LEVEL


def quantiles(values: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Ends (2, ...) of the central share `level` of replicates (b, ...), the i-th smallest at i / (b + 1): few are no narrower."""
    return np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")


def interval(values: np.ndarray, level: float = LEVEL) -> Interval | None:
    """Percentile interval of bootstrap replicates; None where they differ by rounding only, since nothing was resampled then."""
    low, high = quantiles(values, level)
    if not high - low > _ROUNDING * max(abs(low), abs(high)):
        return None
    return Interval(float(low), float(high), level)


def new_score_limits(means: np.ndarray, sd: float, level: float = LEVEL) -> np.ndarray:
    """Limits (2, m) of a new value that is normal about one of the means (b, m): mean_b Phi((q - mean_b) / sd) = (1 -+ level) / 2.

    Solved by bisection, so that they are smooth and do not depend on what else is asked for.
    """
    ends = np.array([(1 - level) / 2, (1 + level) / 2])
    if sd <= 0:
        return quantiles(means, level)
    low = np.repeat(means.min(0)[None] - 9 * sd, 2, axis=0)
    high = np.repeat(means.max(0)[None] + 9 * sd, 2, axis=0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        under = np.stack([ndtr((one - means) / sd).mean(0) for one in middle]) < ends[:, None]
        low, high = np.where(under, middle, low), np.where(under, high, middle)
    return (low + high) / 2
