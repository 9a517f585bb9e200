"""The Pareto frontier of score against training compute, and the cell that is best for each budget.

To plot: `Frontier.points` (sorted by compute) as a descending staircase (`steps-post`): at compute x the frontier is the score of the
last point at or left of x. `Frontier.optimal` gives the cell to train at each budget, with how often it stays best under the noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.fits.fit import NotIdentified
from analysis.fits.noise import Noise, Place, noise_of, places
from analysis.fits.observations import Observations
from analysis.fits.record import Interval, Note, Record
from analysis.fits.validation import cell_means, cell_name

_DRAWS = 2000


@dataclass(frozen=True)
class FrontierPoint(Record):
    """A score that no score of at most the same training compute beats; mean over seeds, interval of the noise (None if unknown)."""

    run: str
    block: str
    size: str
    patch_size: int
    step: int
    train_gflops: float
    score: float
    interval: Interval | None


@dataclass(frozen=True)
class OptimalSize(Record):
    """The best cell at a budget: its best score so far, interpolated in log compute; the best it ever had once it stopped training.

    `probability` that it is best of `candidates` cells, under the noise; None where the noise is unknown.
    """

    train_gflops: float
    block: str
    size: str
    patch_size: int
    params: int
    score: float
    probability: float | None
    candidates: int


@dataclass(frozen=True)
class Gap(Record):
    """A cell's smallest ratio to the frontier at equal compute, and where; 1 is on it."""

    cell: str
    block: str
    size: str
    patch_size: int
    train_gflops: float
    ratio: float
    interval: Interval | None
    on_frontier: bool


@dataclass(frozen=True)
class Frontier(Record):
    """Lower envelope of the scores over training compute. `gaps` has every cell, on the frontier or not."""

    metric: str
    label: str
    points: tuple[FrontierPoint, ...]
    optimal: tuple[OptimalSize, ...]
    gaps: tuple[Gap, ...]
    noise: Noise
    notes: tuple[Note, ...]

    def at(self, train_gflops: float) -> FrontierPoint | None:
        """The best score that costs no more than this; None below the cheapest."""
        within = [one for one in self.points if one.train_gflops <= train_gflops * (1 + 1e-9)]
        return within[-1] if within else None


def frontier(observations: Observations, budgets: int = 9) -> Frontier:
    """The frontier of all rows, all blocks together (filter first for one block).

    Raises:
        NotIdentified: if there are fewer than two cells.
    """
    if observations.cells.max() < 1:
        raise NotIdentified("a frontier needs two cells, there is one")
    noise = noise_of(observations)
    data = cell_means(observations)
    where = places(data)
    compute, score = data.column("train_gflops"), data.score
    order = np.lexsort((score, compute))
    best = np.minimum.accumulate(score[order])
    on = order[np.concatenate([[True], best[1:] < best[:-1]])]
    rows = list(data.rows.itertuples())
    points = tuple(
        FrontierPoint(
            rows[at].run,
            rows[at].block,
            rows[at].size,
            int(rows[at].patch_size),
            int(rows[at].step),
            float(compute[at]),
            float(score[at]),
            noise.interval(where[at]),
        )
        for at in on
    )
    notes = []
    if data.rows.groupby(data.cells)["step"].nunique().max() < 2:
        notes.append(Note("one_step", "each cell has one score: the frontier knows no shorter training"))
    if noise.relative_sd is None:
        notes.append(Note("noise", f"no interval: noise {noise.source}"))
    return Frontier(
        data.metric,
        data.label,
        points,
        tuple(_optimal(data, where, noise, budgets)),
        tuple(_gaps(data, where, noise, on)),
        noise,
        tuple(notes),
    )


def _optimal(data: Observations, where: list[Place], noise: Noise, budgets: int) -> list[OptimalSize]:
    """The best cell at budgets spaced evenly in the logarithm, from the second cheapest cell to the dearest score."""
    cells, log_compute, log_score = data.cells, np.log(data.column("train_gflops")), np.log(data.score)
    curves = []
    for one in range(cells.max() + 1):
        at = np.flatnonzero(cells == one)
        at = at[np.argsort(log_compute[at])]
        curves.append((at, log_compute[at], np.minimum.accumulate(log_score[at])))
    first = np.sort([x[0] for _, x, _ in curves])[1]
    rng = np.random.default_rng(0)
    found = []
    for budget in np.linspace(first, log_compute.max(), budgets):
        able = [curve for curve in curves if curve[1][0] <= budget + 1e-9]
        values = np.array([np.interp(budget, x, y) for _, x, y in able])
        best = int(np.argmin(values))
        last = [where[at[np.searchsorted(x, budget + 1e-9) - 1]] for at, x, _ in able]
        draws = values + noise.draws(last, _DRAWS, rng)
        row = data.rows.iloc[able[best][0][0]]
        probability = None if noise.relative_sd is None else float((draws.argmin(1) == best).mean())
        found.append(
            OptimalSize(
                float(np.exp(budget)),
                str(row["block"]),
                str(row["size"]),
                int(row["patch_size"]),
                int(row["params"]),
                float(np.exp(values[best])),
                probability,
                len(able),
            )
        )
    return found


def _gaps(data: Observations, where: list[Place], noise: Noise, on: np.ndarray) -> list[Gap]:
    compute, score, cells = data.column("train_gflops"), data.score, data.cells
    place = np.searchsorted(compute[on], compute * (1 + 1e-9), side="right") - 1
    against = on[place]
    ratio = score / score[against]
    found = []
    rows = list(data.rows.itertuples())
    for one in range(cells.max() + 1):
        at = np.flatnonzero(cells == one)
        closest = int(at[np.argmin(ratio[at])])
        row = rows[closest]
        is_on = bool(np.isin(at, on).any())
        found.append(
            Gap(
                cell_name(row),
                row.block,
                row.size,
                int(row.patch_size),
                float(compute[closest]),
                float(ratio[closest]),
                None if is_on else noise.interval(where[closest], where[against[closest]]),
                is_on,
            )
        )
    return found
