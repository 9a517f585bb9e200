"""What sampling steps buy: score(S) = base x (1 + K S^-k) for each cell, and one law with K and k shared by all cells.

`base` is the score with unlimited sampling steps: what no sampling compute can go below. Fitted to scores that differ in the number
of sampling steps and in nothing else of the protocol. To plot: `CellSampling.sampling_gflops`/`scores` as points,
`CellSampling.curve` (over sampling Gflops per image; one multiply-add is one flop) as a line; `SamplingLaw.gain` is score / base
against sampling steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.fits import bootstrap
from analysis.fits.fit import REPLICATES, NotIdentified
from analysis.fits.noise import RETRAINING_OVER_RESAMPLING, noise_of
from analysis.fits.observations import Observations
from analysis.fits.record import Curve, Interval, Note, Parameter, Record, interval, new_score_limits, quantiles
from analysis.fits.refine import Problem, minimise
from analysis.fits.validation import cell_means, cell_name

EQUATION = "L = base (1 + K S^-k), S sampling steps; base for each cell, K and k shared"
_LEAST_STEPS = 3
_OWN_STEPS = 4
_STARTS = 8
_LACK, _LEAST_SCATTER, _MOST_SCATTER = 3.0, 0.01, 0.1
_NOTHING = 1e-9  # an excess over the base that rounding alone can make
_CURVE_POINTS = 60
_EXPONENTS = _LEAST, _MOST = 0.05, 6.0


@dataclass(frozen=True)
class CellSampling(Record):
    """One cell after one training step, over sampling steps. `base`: its score with unlimited sampling steps under the shared law.

    `own_exponent`: k fitted to this cell alone, with a K of its own; no value below four numbers of sampling steps.
    """

    cell: str
    block: str
    size: str
    patch_size: int
    step: int
    gflops: float
    steps: tuple[int, ...]
    sampling_gflops: tuple[float, ...]
    scores: tuple[float, ...]
    base: Parameter
    own_exponent: Parameter
    curve: Curve


@dataclass(frozen=True)
class BuyBack(Record):
    """Whether sampling compute buys back a smaller model. `ratio`: base of the smaller / base of the larger.

    `bought_back`: whether unlimited sampling steps bring the smaller model to the larger, None where the ratio's interval holds 1.
    `matching_steps`: with so many sampling steps the larger model already matches the smaller's base; `saving`: sampling Gflops of the
    smaller at its most steps over those.
    """

    smaller: str
    larger: str
    block: str
    smaller_at_most: float
    larger_at_most: float
    ratio: float
    interval: Interval | None
    bought_back: bool | None
    matching_steps: float | None
    saving: float | None
    said: str


@dataclass(frozen=True)
class SamplingLaw(Record):
    """The shared law over all cells; `gain` is None where K is at its bound 0 (sampling steps buy nothing that shows)."""

    metric: str
    label: str
    equation: str
    amplitude: Parameter
    exponent: Parameter
    cells: tuple[CellSampling, ...]
    buy_back: tuple[BuyBack, ...]
    gain: Curve | None
    residual_sd: float
    notes: tuple[Note, ...]

    @property
    def said(self) -> str:
        """What unlimited sampling steps do for the smaller model, counted over all pairs; empty where there is none."""
        if not self.buy_back:
            return ""
        yes, no, unknown = (sum(one.bought_back is state for one in self.buy_back) for state in (True, False, None))
        return (
            f"Unlimited sampling steps bring the smaller model to the larger in {yes} of {len(self.buy_back)} pairs of cells, do not in "
            f"{no}, and {unknown} are not told apart."
        )


@dataclass(frozen=True)
class SamplingModel:
    """Theta: log base of each cell, then K at the centre of log S, then k. `group` numbers the cell of each point."""

    cells: int

    def log_score(self, theta: np.ndarray, u: np.ndarray, group: np.ndarray | None = None) -> np.ndarray:
        """Log scores (b, n) at centred log sampling steps u (n, 1)."""
        return theta[:, group] + np.log1p(theta[:, -2:-1] * np.exp(-theta[:, -1:] * u[:, 0]))

    def jacobian(self, theta: np.ndarray, u: np.ndarray, group: np.ndarray | None = None) -> np.ndarray:
        """Their derivatives (b, n, cells + 2)."""
        power = np.exp(-theta[:, -1:] * u[:, 0])
        excess = theta[:, -2:-1] * power
        jacobian = np.zeros((len(theta), len(u), self.cells + 2))
        jacobian[:, np.arange(len(u)), group] = 1.0
        jacobian[..., -2] = power / (1 + excess)
        jacobian[..., -1] = -excess * u[:, 0] / (1 + excess)
        return jacobian

    def bounds(self, groups: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """K is not negative, k between `_LEAST` and `_MOST`."""
        free = np.full(self.cells, np.inf)
        return np.concatenate([-free, [0.0, _LEAST]]), np.concatenate([free, [np.inf, _MOST]])

    def starts(self, u: np.ndarray, target: np.ndarray, group: np.ndarray) -> np.ndarray:
        """The best starting vectors of a grid of K and k: the bases follow in closed form."""
        amplitude, exponent = np.meshgrid(np.geomspace(1e-3, 10, 16), np.geomspace(0.1, 4, 16), indexing="ij")
        amplitude, exponent = amplitude.ravel()[:, None], exponent.ravel()[:, None]
        rest = target - np.log1p(amplitude * np.exp(-exponent * u[:, 0]))
        member = group[:, None] == np.arange(self.cells)
        base = rest @ member / member.sum(0)
        squares = ((rest - base[:, group]) ** 2).sum(1)
        order = np.argsort(squares, kind="stable")[:_STARTS]
        return np.concatenate([base, amplitude, exponent], axis=1)[order]


def sampling_law(observations: Observations, replicates: int = REPLICATES) -> SamplingLaw:
    """Fit to scores that differ in sampling steps only (`observe(study, apart_from=("sampling_steps",))`), seeds averaged.

    Raises:
        NotIdentified: if no cell was scored at three numbers of sampling steps after one training step, or cells do not gain alike.
    """
    data = _rows(observations)
    noise_sd = noise_of(observations).sd / RETRAINING_OVER_RESAMPLING
    keys = ["block", "size", "patch_size", "image_size"]
    group = data.rows.groupby(keys, sort=False, dropna=False).ngroup().to_numpy()
    steps = data.column("sampling_steps")
    center = float(np.log(steps).mean())
    model = SamplingModel(int(group.max()) + 1)
    theta, spread, residual = _fit(model, np.log(steps) - center, np.log(data.score), group, noise_sd, replicates)
    scatter = float(np.sqrt(np.mean(residual**2)))
    if scatter > (limit := max(_LACK * noise_sd, _MOST_SCATTER)):
        raise NotIdentified(
            f"cells do not gain alike: scatter about the shared law is {scatter:.1%}, more than {limit:.0%}, "
            "so that its base, K and k mean nothing; read each cell's scores by themselves"
        )
    notes = []
    if theta[-2] <= 0:
        notes.append(Note("at_bound", "K is at its bound 0: more sampling steps buy nothing that these scores show"))
    if scatter > _LACK * max(noise_sd, _LEAST_SCATTER):
        notes.append(
            Note(
                "lack_of_fit",
                f"cells do not gain alike: scatter about the shared law {scatter:.1%}, read each cell by itself",
            )
        )
    amplitude, exponent = _shared(theta, spread, center)
    cells = tuple(
        _cell(data.at(group == one), theta, spread, one, center, noise_sd, replicates) for one in range(model.cells)
    )
    gain = None
    if theta[-2] > 0:
        x = np.geomspace(steps.min(), steps.max(), _CURVE_POINTS)
        gain = _curve("score / base", "sampling_steps", "score / base", x, x, theta, spread, None, center, noise_sd)
    return SamplingLaw(
        metric=data.metric,
        label=data.label,
        equation=EQUATION,
        amplitude=amplitude,
        exponent=exponent,
        cells=cells,
        buy_back=tuple(_buy_back(cells, theta, spread, center)),
        gain=gain,
        residual_sd=scatter,
        notes=tuple(notes),
    )


def _rows(observations: Observations) -> Observations:
    """Rows of the cells with three or more numbers of sampling steps, each at its last training step that has them; seeds averaged."""
    rows = observations.rows
    keys = ["block", "size", "patch_size", "image_size"]
    counts = rows.groupby([*keys, "step"])["sampling_steps"].transform("nunique")
    rows = rows[(counts >= _LEAST_STEPS).to_numpy()]
    if rows.empty:
        raise NotIdentified(
            f"no cell was scored at {_LEAST_STEPS} numbers of sampling steps after one training step: what they buy cannot be fitted"
        )
    rows = rows[rows["step"] == rows.groupby(keys)["step"].transform("max")]
    parts = [
        cell_means(observations.at(observations.rows.index.isin(part.index))).rows
        for _, part in rows.groupby("sampling_steps")
    ]
    merged = pd.concat(parts).sort_values([*keys[:1], "params", "patch_size", "sampling_steps"], kind="stable")
    return replace(observations, rows=merged.reset_index(drop=True))


def _fit(
    model: SamplingModel, u: np.ndarray, target: np.ndarray, group: np.ndarray, noise_sd: float, replicates: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best theta (p,), replicates (b, p), log residuals (n,). Clusters are cells, or single points where there is one cell."""
    problem = Problem(model, u[:, None], group=group, delta=np.inf)
    theta, loss, _ = minimise(problem, model.starts(problem.u, target, group), target, np.ones(len(target)))
    best = theta[np.argmin(loss)]
    best[-2] = 0.0 if best[-2] < _NOTHING else best[-2]
    residual = target - model.log_score(best[None], problem.u, group)[0]
    points = np.arange(len(target))
    moved = bootstrap.perturbations(
        residual, points, points, points, model.cells + 2, noise_sd, replicates, np.random.default_rng(0)
    )
    spread = bootstrap.resample(problem, best, moved)
    return best, spread, residual


def _shared(theta: np.ndarray, spread: np.ndarray, center: float) -> tuple[Parameter, Parameter]:
    """K and k in natural units; without values where K is at its bound."""
    if theta[-2] <= 0:
        said = "not identified: K is at its bound 0"
        return Parameter("K", None, None, said, "amplitude"), Parameter("k", None, None, said, "exponent")
    factor, between = np.exp(spread[:, -1] * center), interval(spread[:, -1])
    low, high = (theta[-1], theta[-1]) if between is None else (between.low, between.high)
    bounds = [f"{end:g}" for end, near in zip(_EXPONENTS, (low <= 1.01 * _LEAST, high >= 0.99 * _MOST)) if near]
    said = f"hardly identified: the interval of k reaches its bound {' and '.join(bounds)}" if bounds else None
    amplitude = Parameter(
        "K", float(theta[-2] * np.exp(theta[-1] * center)), interval(spread[:, -2] * factor), said, "amplitude"
    )
    return amplitude, Parameter("k", float(theta[-1]), between, said, "exponent of sampling steps")


def _curve(
    name: str,
    x_name: str,
    y_name: str,
    x: np.ndarray,
    steps: np.ndarray,
    theta: np.ndarray,
    spread: np.ndarray,
    cell: int | None,
    center: float,
    noise_sd: float,
) -> Curve:
    """The law of one cell, or of score / base, at `steps`, drawn over `x`."""
    u = np.log(steps) - center

    def at(values: np.ndarray) -> np.ndarray:
        base = 0.0 if cell is None else values[:, cell][:, None]
        return base + np.log1p(values[:, -2:-1] * np.exp(-values[:, -1:] * u))

    laws = at(spread)
    bands = (x, at(theta[None])[0], *quantiles(laws), *new_score_limits(laws, noise_sd))
    lines = [
        tuple(float(one) for one in (bands[0] if place == 0 else np.exp(line))) for place, line in enumerate(bands)
    ]
    return Curve(name, x_name, y_name, *lines, measured=(float(x[0]), float(x[-1])))


def _cell(
    data: Observations,
    theta: np.ndarray,
    spread: np.ndarray,
    place: int,
    center: float,
    noise_sd: float,
    replicates: int,
) -> CellSampling:
    row = next(data.rows.itertuples())
    steps, score = data.column("sampling_steps"), data.score
    own = Parameter("k", None, None, f"too few levels: {len(steps)} numbers of sampling steps, {_OWN_STEPS} are needed")
    if len(steps) >= _OWN_STEPS:
        alone, alone_spread, _ = _fit(
            SamplingModel(1),
            np.log(steps) - center,
            np.log(score),
            np.zeros(len(steps), dtype=int),
            noise_sd,
            min(replicates, 300),
        )
        own = _shared(alone, alone_spread, center)[1]
    per_step = data.column("sampling_gflops") / steps
    x = np.geomspace(steps.min(), steps.max(), _CURVE_POINTS)
    name = cell_name(row)
    return CellSampling(
        cell=name,
        block=row.block,
        size=row.size,
        patch_size=int(row.patch_size),
        step=int(row.step),
        gflops=float(row.gflops),
        steps=tuple(int(one) for one in steps),
        sampling_gflops=tuple(float(one) for one in data.column("sampling_gflops")),
        scores=tuple(float(one) for one in score),
        base=Parameter(
            "base", float(np.exp(theta[place])), interval(np.exp(spread[:, place])), None, "score, unlimited steps"
        ),
        own_exponent=own,
        curve=_curve(name, "sampling_gflops", data.metric, x * per_step[0], x, theta, spread, place, center, noise_sd),
    )


def _buy_back(cells: tuple[CellSampling, ...], theta: np.ndarray, spread: np.ndarray, center: float) -> list[BuyBack]:
    """Every pair of cells of one block with the same patch size, the smaller first."""
    found = []
    order = sorted(range(len(cells)), key=lambda at: cells[at].gflops)
    for first, small in enumerate(order):
        for large in order[first + 1 :]:
            one, other = cells[small], cells[large]
            if (one.block, one.patch_size) != (other.block, other.patch_size) or one.size == other.size:
                continue
            log_ratio = float(theta[small] - theta[large])
            spread_ratio = interval(np.exp(spread[:, small] - spread[:, large]))
            matching, saving = None, None
            if log_ratio > 0 and theta[-2] > 0:
                matching = float(np.exp(center + np.log(theta[-2] / np.expm1(log_ratio)) / theta[-1]))
                saving = one.sampling_gflops[-1] / (matching * other.sampling_gflops[-1] / other.steps[-1])
            bought_back = None if spread_ratio is None or 1 in spread_ratio else spread_ratio.high < 1
            found.append(
                BuyBack(
                    one.cell,
                    other.cell,
                    one.block,
                    one.scores[-1],
                    other.scores[-1],
                    float(np.exp(log_ratio)),
                    spread_ratio,
                    bought_back,
                    matching,
                    saving,
                    _said(one, other, spread_ratio, matching, saving),
                )
            )
    return found


def _said(
    small: CellSampling, large: CellSampling, ratio: Interval | None, matching: float | None, saving: float | None
) -> str:
    if ratio is None:
        return f"{small.cell} against {large.cell}: nothing is known of the noise"
    if 1 in ratio:
        return f"{small.cell} and {large.cell} are not told apart at unlimited sampling ({ratio} times)"
    if ratio.high < 1:
        return f"{small.cell} is better than {large.cell} at unlimited sampling ({ratio} times)"
    text = f"no sampling compute brings {small.cell} to {large.cell}: its best stays {ratio} times higher"
    if matching is not None and saving is not None:
        inside = large.steps[0] <= matching <= large.steps[-1]
        text += (
            f"; {large.cell} matches it from {matching:.0f} steps, {saving:.1f} times less sampling compute"
            if inside
            else f"; {large.cell} is better at every number of steps measured"
            if matching < large.steps[0]
            else ""
        )
    return text
