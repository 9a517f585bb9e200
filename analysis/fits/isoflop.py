"""isoFLOP: at fixed training compute, which size is best, for one block at one patch size.

Each cell's training curve is interpolated in log compute (Akima); at each budget a polynomial of log score in
log N is fitted around the lowest size, to the five next to it: a cubic (through four, least squares
of five), a parabola through three. A minimum at the smallest or largest size is
rejected, and so is one that the noise moves there in a fifth of the resamples. Points on the way of one run are legitimate because
the learning rate is constant. To plot: for each `Budget`, `params`/`scores` as points, `curve_params`/`curve_scores` as a line,
`optimum_params` (None if rejected) as a mark. Hoffmann et al. arXiv:2203.15556 Approach 2; Porian et al. arXiv:2406.19146 (Akima,
edges, seed noise); parabolas are biased (Czech et al. arXiv:2603.22339), hence the cubic and the comparison with the parametric
law.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from analysis.fits.fit import LawFit, NotIdentified
from analysis.fits.noise import noise_of
from analysis.fits.observations import Observations
from analysis.fits.record import Interval, Note, Parameter, Record, interval
from analysis.fits.validation import cell_means

DRAWS = 400
_RESOLVED = 0.8  # least share of resamples with an interior minimum
_LEAST_SIZES = 3
_LEAST_BUDGETS = 3
_NEAR = 5
_CURVE_POINTS = 61


@dataclass(frozen=True)
class Budget(Record):
    """One isoFLOP: the sizes' interpolated scores at this training compute, the polynomial through them and its interior minimum.

    `rejected`: why there is no optimum. `parametric_params`: the law's own optimum within the sizes; `disagreement`: log10 of
    optimum over that.
    """

    train_gflops: float
    sizes: tuple[str, ...]
    params: tuple[float, ...]
    scores: tuple[float, ...]
    curve_params: tuple[float, ...]
    curve_scores: tuple[float, ...]
    optimum_params: float | None
    optimum_interval: Interval | None
    optimum_score: float | None
    rejected: str | None
    parametric_params: float | None
    disagreement: float | None


@dataclass(frozen=True)
class IsoFlop(Record):
    """The isoFLOPs of one block at one patch size; `exponent` of N_opt ~ C^exponent (no value, with `said`, below three optima)."""

    block: str
    patch_size: int
    metric: str
    label: str
    budgets: tuple[Budget, ...]
    exponent: Parameter
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class _Curve:
    """A size's training curve in logarithms; `gflops` of one forward pass."""

    size: str
    log_params: float
    gflops: float
    tokens: float
    seeds: int
    log_compute: np.ndarray
    log_score: np.ndarray

    def covers(self, budget: float) -> bool:
        return self.log_compute[0] - 1e-9 <= budget <= self.log_compute[-1] + 1e-9

    def at(self, budget: float) -> float:
        clipped = np.clip(budget, self.log_compute[0], self.log_compute[-1])
        return float(Akima1DInterpolator(self.log_compute, self.log_score)(clipped))


def isoflop(
    observations: Observations, block: str, patch_size: int, budgets: int = 7, law: LawFit | None = None
) -> IsoFlop:
    """isoFLOPs at budgets that at least three sizes' curves cover; `law` (with N and D) gives the parametric optimum beside.

    Raises:
        NotIdentified: if at no budget three sizes' training curves overlap.
    """
    data = observations.of_block(block)
    data = data.at((data.rows["patch_size"] == patch_size).to_numpy())
    where = f"block {block} at patch size {patch_size}"
    curves = _curves(data) if len(data) else []
    lattice = np.linspace(
        min((c.log_compute[0] for c in curves), default=0.0), max((c.log_compute[-1] for c in curves), default=0.0), 400
    )
    able = [budget for budget in lattice if sum(c.covers(budget) for c in curves) >= _LEAST_SIZES]
    if not able:
        raise NotIdentified(
            f"{where}: no training compute is covered by the curves of three sizes (sizes with scores at several steps: {len(curves)})"
        )
    noise = noise_of(observations)
    at = np.linspace(able[0], able[-1], budgets)
    at = at[[sum(c.covers(budget) for c in curves) >= _LEAST_SIZES for budget in at]]
    draws = np.random.default_rng(0).standard_normal((DRAWS, len(curves)))
    found, optima = [], []
    for budget in at:
        one, spread = _budget(budget, curves, noise.sd, draws, law)
        found.append(one)
        if one.optimum_params is not None:
            optima.append((budget, np.log(one.optimum_params), spread))
    notes = []
    if noise.relative_sd is None:
        notes.append(Note("noise", f"intervals leave out the noise: {noise.source}"))
    if max(len(one.sizes) for one in found) < 4:
        notes.append(Note("too_few_levels", "three sizes at each budget: parabolas, which are biased"))
    apart = [abs(one.disagreement) for one in found if one.disagreement is not None]
    if apart:
        notes.append(
            Note("disagreement", f"isoFLOP and parametric optimum are a factor of {10 ** max(apart):.2f} apart at most")
        )
    elif law is not None and optima:
        notes.append(Note("disagreement", "the parametric law has no optimum within the sizes at any budget"))
    return IsoFlop(block, patch_size, data.metric, data.label, tuple(found), _exponent(optima), tuple(notes))


def _curves(data: Observations) -> list[_Curve]:
    """The sizes that were scored at several steps, in order of their parameters."""
    means = cell_means(data)
    seeds = data.rows.groupby("size")["run"].nunique()
    found = []
    for size in means.sizes:
        part = means.at(means.labels("size") == size)
        order = np.unique(part.column("train_gflops"), return_index=True)[1]
        if len(order) > 1:
            found.append(
                _Curve(
                    size,
                    float(np.log(part.column("params")[0])),
                    float(part.column("gflops")[0]),
                    float(part.column("tokens")[0]),
                    int(seeds[size]),
                    np.log(part.column("train_gflops"))[order],
                    np.log(part.score)[order],
                )
            )
    return found


def around(y: np.ndarray) -> slice:
    """The places of the lowest value and its neighbours, `_NEAR` of them, or all where there are fewer."""
    first = int(np.clip(np.argmin(y) - _NEAR // 2, 0, max(len(y) - _NEAR, 0)))
    return slice(first, first + _NEAR)


def polynomial(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Coefficients, highest first: a parabola through three points, a cubic through four or in least squares from five."""
    return np.polyfit(x, y, min(3, len(x) - 1))


def minimum(coefficients: np.ndarray, low: float, high: float) -> float | None:
    """The interior minimum of a polynomial between low and high; None if it is lowest at an edge."""
    roots = np.roots(np.polyder(coefficients))
    real = roots[np.abs(roots.imag) < 1e-9].real
    inside = [x for x in real if low < x < high and np.polyval(np.polyder(coefficients, 2), x) > 0]
    if not inside:
        return None
    best = min(inside, key=lambda x: np.polyval(coefficients, x))
    edge = min(np.polyval(coefficients, low), np.polyval(coefficients, high))
    return float(best) if np.polyval(coefficients, best) < edge else None


def _lowest(x: np.ndarray, y: np.ndarray) -> float | None:
    """The interior minimum of the polynomial around the lowest of the values."""
    near = around(y)
    return minimum(polynomial(x[near], y[near]), x[near][0], x[near][-1])


def _budget(
    budget: float, curves: list[_Curve], noise_sd: float, draws: np.ndarray, law: LawFit | None
) -> tuple[Budget, np.ndarray]:
    """One isoFLOP, and log N_opt of the resamples (NaN where the minimum lies at an edge)."""
    at = [place for place, curve in enumerate(curves) if curve.covers(budget)]
    able = [curves[place] for place in at]
    x, y = np.array([c.log_params for c in able]), np.array([c.at(budget) for c in able])
    center = x.mean()
    near = around(y)
    coefficients = polynomial(x[near] - center, y[near])
    best = _lowest(x - center, y)
    sd = noise_sd / np.sqrt([c.seeds for c in able])
    moved = [_lowest(x - center, y + sd * one) for one in draws[:, at]]
    spread = np.array([np.nan if one is None else one + center for one in moved])
    resolved = float(np.isfinite(spread).mean())
    rejected = None
    if best is None:
        edge = able[0].size if y[0] < y[-1] else able[-1].size
        rejected = f"minimum at an edge: no size between {able[0].size} and {able[-1].size} is better than {edge}"
    elif resolved < _RESOLVED:
        rejected = f"minimum not resolved: within the sizes in {resolved:.0%} of the resamples only"
    line = np.linspace(x[near][0], x[near][-1], _CURVE_POINTS)
    parametric = None if law is None else _parametric(budget, able, law)
    optimum = None if rejected or best is None else float(np.exp(best + center))
    return (
        Budget(
            train_gflops=float(np.exp(budget)),
            sizes=tuple(c.size for c in able),
            params=tuple(float(np.exp(one)) for one in x),
            scores=tuple(float(np.exp(one)) for one in y),
            curve_params=tuple(float(np.exp(one)) for one in line),
            curve_scores=tuple(float(one) for one in np.exp(np.polyval(coefficients, line - center))),
            optimum_params=optimum,
            optimum_interval=None if optimum is None else interval(np.exp(spread[np.isfinite(spread)])),
            optimum_score=None if optimum is None or best is None else float(np.exp(np.polyval(coefficients, best))),
            rejected=rejected,
            parametric_params=parametric,
            disagreement=None if optimum is None or parametric is None else float(np.log10(optimum / parametric)),
        ),
        spread,
    )


def _parametric(budget: float, able: list[_Curve], law: LawFit) -> float | None:
    """Where the law is lowest between the sizes at this compute; None at an edge. Gflops are interpolated in log N."""
    if "images_seen" not in law.variables:
        return None
    known = np.array([c.log_params for c in able])
    log_params = np.linspace(known[0], known[-1], 400)
    log_gflops = np.interp(log_params, known, np.log([c.gflops for c in able]))
    columns = {
        "params": np.exp(log_params),
        "images_seen": np.exp(budget - log_gflops - np.log(3)),
        "tokens": np.full(400, able[0].tokens),
    }
    scores = law.estimate.log_score(law.estimate.theta[None], columns)[0]
    best = int(np.argmin(scores))
    return float(np.exp(log_params[best])) if 0 < best < 399 else None


def _exponent(optima: list[tuple[float, float, np.ndarray]]) -> Parameter:
    """Slope of log N_opt over log C, weighted by the resamples' variance; its interval from the resamples."""
    meaning = "N_opt ~ C^exponent"
    if len(optima) < _LEAST_BUDGETS:
        said = f"not determined: {len(optima)} budgets with an interior optimum, three are needed"
        return Parameter("exponent", None, None, said, meaning)
    x = np.array([budget for budget, _, _ in optima])
    y = np.array([best for _, best, _ in optima])
    spread = np.stack([one for _, _, one in optima], axis=1)
    sd = np.nanstd(spread, axis=0)
    weights = 1 / np.maximum(sd, 1e-3)
    value = float(np.polyfit(x, y, 1, w=weights)[0])
    full = spread[np.isfinite(spread).all(axis=1)]
    slopes = np.array([np.polyfit(x, line, 1, w=weights)[0] for line in full])
    return Parameter("exponent", value, interval(slopes) if len(slopes) > 40 else None, None, meaning)
