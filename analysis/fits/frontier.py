"""The Pareto frontier of score against training compute, and the cell that is best for each budget.

To plot: `Frontier.points` (sorted by compute) as a descending staircase (`steps-post`): at compute x the frontier is the score of the
last point at or left of x. `Frontier.optimal` gives the cell to train at each budget, with how often it stays best under the noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.fits.fit import NotIdentified
from analysis.fits.noise import Noise, noise_of
from analysis.fits.observations import CELL, Observations
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
    """The best cell at a budget: its curve interpolated in log compute, its last score once it stopped training.

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


def noise_interval(score: float, sd: float, noise: Noise) -> Interval | None:
    """Interval of a score (or ratio) whose log has standard deviation `sd`; None where the noise is unknown."""
    if noise.relative_sd is None:
        return None
    return Interval(float(score * np.exp(-1.96 * sd)), float(score * np.exp(1.96 * sd)))


def frontier(observations: Observations, budgets: int = 9) -> Frontier:
    """The frontier of all rows, all blocks together (filter first for one block).

    Raises:
        NotIdentified: if there are fewer than two cells.
    """
    if observations.cells.max() < 1:
        raise NotIdentified("a frontier needs two cells, there is one")
    noise = noise_of(observations)
    data = cell_means(observations)
    seeds = observations.rows.groupby([*CELL, "step"], dropna=False, sort=False)["run"].nunique().to_numpy()
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
            noise_interval(float(score[at]), noise.sd / np.sqrt(seeds[at]), noise),
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
        tuple(_optimal(data, seeds, noise, budgets)),
        tuple(_gaps(data, seeds, noise, on)),
        noise,
        tuple(notes),
    )


def _optimal(data: Observations, seeds: np.ndarray, noise: Noise, budgets: int) -> list[OptimalSize]:
    """The best cell at budgets spaced evenly in the logarithm, from the second cheapest cell to the dearest score."""
    cells, log_compute, log_score = data.cells, np.log(data.column("train_gflops")), np.log(data.score)
    curves = []
    for one in range(cells.max() + 1):
        at = np.flatnonzero(cells == one)
        at = at[np.argsort(log_compute[at])]
        curves.append((at, log_compute[at], log_score[at]))
    first = np.sort([x[0] for _, x, _ in curves])[1]
    rng = np.random.default_rng(0)
    found = []
    for budget in np.linspace(first, log_compute.max(), budgets):
        able = [curve for curve in curves if curve[1][0] <= budget + 1e-9]
        values = np.array([np.interp(budget, x, y) for _, x, y in able])
        sd = noise.sd / np.sqrt([seeds[at[0]] for at, _, _ in able])
        best = int(np.argmin(values))
        draws = values + sd * rng.standard_normal((_DRAWS, len(able)))
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


def _gaps(data: Observations, seeds: np.ndarray, noise: Noise, on: np.ndarray) -> list[Gap]:
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
        sd = noise.sd * np.sqrt(1 / seeds[closest] + 1 / seeds[against[closest]])
        is_on = bool(np.isin(at, on).any())
        found.append(
            Gap(
                cell_name(row),
                row.block,
                row.size,
                int(row.patch_size),
                float(compute[closest]),
                float(ratio[closest]),
                None if is_on else noise_interval(float(ratio[closest]), sd, noise),
                is_on,
            )
        )
    return found
