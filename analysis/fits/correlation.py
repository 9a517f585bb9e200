"""Does compute or size set quality: correlations of log Gflops and log parameters with the score, plain and partial.

The cells are a fixed grid, not pairs drawn at random, so Fisher's interval is nominal: it says how far chance pairs would lie
apart, not how far another study would. Beside it stands the chance of as strong a correlation if scores are dealt at random.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, rankdata

from analysis.fits.fit import NotIdentified
from analysis.fits.observations import Observations
from analysis.fits.record import LEVEL, Interval, Record
from analysis.fits.validation import cell_means

_LEAST_CELLS = 4


@dataclass(frozen=True)
class Correlation(Record):
    """A correlation over `cells` cells, with its nominal Fisher interval (None below five cells). `given`: what is held, or None.

    `chance`: share of random dealings of the scores to the cells with a correlation as strong.
    """

    x: str
    y: str
    given: str | None
    kind: str
    value: float
    interval: Interval | None
    cells: int
    chance: float


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


def pearson(x: np.ndarray, y: np.ndarray, given: np.ndarray | None = None) -> float:
    """Pearson correlation; partial if `given` is held (residuals of straight lines in it)."""
    if given is not None:
        design = np.stack([np.ones_like(given), given], axis=1)
        x, y = (one - design @ np.linalg.lstsq(design, one, rcond=None)[0] for one in (x, y))
    return float(np.corrcoef(x, y)[0, 1])


def permuted(x: np.ndarray, y: np.ndarray, given: np.ndarray | None = None, dealings: int = 2000) -> float:
    """Share of random dealings of y (of its residuals, if `given` is held) to the cells that correlate with x as strongly."""
    design = np.ones((len(x), 1)) if given is None else np.stack([np.ones_like(given), given], axis=1)
    x, y = (one - design @ np.linalg.lstsq(design, one, rcond=None)[0] for one in (x, y))
    rng = np.random.default_rng(0)
    dealt = np.abs(rng.permuted(np.repeat(y[None], dealings, axis=0), axis=1) @ x)
    return float((1 + (dealt >= abs(x @ y) * (1 - 1e-12)).sum()) / (1 + dealings))


def fisher(value: float, cells: int, held: int = 0) -> Interval | None:
    """Fisher's interval of a correlation over n cells with `held` variables held: tanh(atanh(r) +- z / sqrt(n - 3 - held))."""
    if cells - 3 - held < 2:
        return None
    half = norm.ppf((1 + LEVEL) / 2) / np.sqrt(cells - 3 - held)
    middle = np.arctanh(np.clip(value, -1 + 1e-12, 1 - 1e-12))
    return Interval(float(np.tanh(middle - half)), float(np.tanh(middle + half)))


def correlations(observations: Observations, block: str) -> Correlations:
    """Correlations over the cells of a block at the common training step, seeds averaged.

    Raises:
        NotIdentified: if fewer than four cells are there, or all have the same size or the same Gflops.
    """
    data = cell_means(observations.of_block(block).at_common_step())
    cells = len(data)
    if cells < _LEAST_CELLS:
        raise NotIdentified(f"correlations need {_LEAST_CELLS} cells of block {block}, there are {cells}")
    gflops, params, score = np.log10(data.column("gflops")), np.log10(data.column("params")), data.score
    if np.ptp(gflops) < 1e-6 or np.ptp(params) < 1e-6:
        raise NotIdentified(f"all cells of block {block} have the same Gflops or the same parameters")

    def one(x: str, y: str, given: str | None = None, kind: str = "Pearson") -> Correlation:
        known = {"log Gflops": gflops, "log params": params, f"log {data.metric}": np.log10(score), data.metric: score}
        columns = [rankdata(known[name]) if kind == "Spearman" else known[name] for name in (x, y)]
        value = pearson(*columns, None if given is None else known[given])
        between = fisher(value, cells, int(given is not None))
        chance = permuted(columns[0], columns[1], None if given is None else known[given])
        return Correlation(x, y, given, kind, value, between, cells, chance)

    log_score = f"log {data.metric}"
    by_gflops = one("log Gflops", log_score, "log params")
    by_params = one("log params", log_score, "log Gflops")
    return Correlations(
        block=block,
        step=int(data.rows["step"].iloc[0]),
        gflops_score=one("log Gflops", data.metric),
        gflops_log_score=one("log Gflops", log_score),
        gflops_rank=one("log Gflops", data.metric, kind="Spearman"),
        params_log_score=one("log params", log_score),
        gflops_given_params=by_gflops,
        params_given_gflops=by_params,
        said=_said(by_gflops, by_params),
    )


def _said(gflops: Correlation, params: Correlation) -> str:
    """Which of the two is decided once the other is held: only what its interval carries."""

    def words(one: Correlation) -> str:
        if one.interval is None:
            return f"too few cells ({one.cells}) for an interval"
        if 0 in one.interval:
            return "not distinguishable from 0"
        return "improves the score" if one.value < 0 else "worsens the score"

    return (
        f"at equal parameters, more Gflops: {words(gflops)} (partial correlation {gflops.value:.2f}); "
        f"at equal Gflops, more parameters: {words(params)} ({params.value:.2f})"
    )
