"""Does compute or size set quality: correlations of log Gflops and log parameters with the score, plain and partial."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.fits.observations import Observations
from analysis.fits.record import Interval, Record


@dataclass(frozen=True)
class Correlation(Record):
    """A correlation over `cells` cells, with its Fisher interval (None below five cells). `given`: what is held, or None."""

    x: str
    y: str
    given: str | None
    kind: str
    value: float
    interval: Interval | None
    cells: int


@dataclass(frozen=True)
class Correlations(Record):
    """For one block at one training step: log Gflops against score (the paper's -0.93), log-log, rank, and the partial ones."""

    block: str
    step: int
    gflops_score: Correlation
    gflops_log_score: Correlation
    gflops_rank: Correlation
    params_log_score: Correlation
    gflops_given_params: Correlation
    params_given_gflops: Correlation
    said: str


def correlations(observations: Observations, block: str) -> Correlations:
    """Correlations over the cells of a block at the common training step.

    Raises:
        NotIdentified: if fewer than three cells are there.
    """
    raise NotImplementedError
