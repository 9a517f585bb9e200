"""The Pareto frontier of score against training compute, and the size that is best for each budget.

To plot: `Frontier.points` (sorted by compute) as a descending staircase (`steps-post`): at compute x the frontier is the score of the
last point at or left of x. `Frontier.optimal` gives the size to train at each budget, with how often noise would change it.
"""

from __future__ import annotations

from dataclasses import dataclass

from analysis.fits.observations import Observations
from analysis.fits.record import Interval, Record


@dataclass(frozen=True)
class FrontierPoint(Record):
    """A score that no score of at most the same training compute beats. Mean over seeds."""

    run: str
    block: str
    size: str
    patch_size: int
    step: int
    train_gflops: float
    score: float
    interval: Interval


@dataclass(frozen=True)
class OptimalSize(Record):
    """The cell that is best at a budget (curves interpolated in log compute); `probability` that it is, under the noise model."""

    train_gflops: float
    size: str
    patch_size: int
    block: str
    params: int
    score: float
    probability: float
    candidates: int


@dataclass(frozen=True)
class Gap(Record):
    """A cell's best distance to the frontier: score / frontier score at equal compute, where it comes closest; 1 is on it."""

    cell: str
    block: str
    size: str
    patch_size: int
    train_gflops: float
    ratio: float
    interval: Interval
    on_frontier: bool


@dataclass(frozen=True)
class Frontier(Record):
    """Lower envelope of the scores over training compute."""

    metric: str
    label: str
    points: tuple[FrontierPoint, ...]
    optimal: tuple[OptimalSize, ...]
    gaps: tuple[Gap, ...]


def frontier(observations: Observations, budgets: int = 9) -> Frontier:
    """The frontier of all rows (all blocks together; filter first for one block)."""
    raise NotImplementedError
