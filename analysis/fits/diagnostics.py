"""What a reader must know beside a fitted number: too few levels, a parameter at its bound, trends, leverage, distance past the data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import spearmanr, t

from analysis.fits.laws import SYMBOLS, Form
from analysis.fits.observations import VARIABLES, Observations
from analysis.fits.record import Note

MAX_DECADES = 1.0
"""Forecasts further past the data than this are refused unless forced."""
_SAME_LEVEL = 0.1  # natural logarithm: values closer than about ten percent are one level
_FEW_REPLICATES = 0.9
_LACK = 3.0


def levels(observations: Observations, variable: str, kept: np.ndarray | None = None) -> int:
    """Number of distinct levels of a variable: of sizes for parameters, else of values more than ten percent apart.

    `images_seen` counts the training steps of the cell with the second most, since one cell alone does not tell what steps do.
    """
    kept = np.ones(len(observations), dtype=bool) if kept is None else kept
    if variable == "images_seen" and not observations.of_table:
        cells, steps = observations.cells[kept], observations.column("step")[kept]
        counts = sorted(len(set(steps[cells == one])) for one in set(cells))
        return counts[-2] if len(counts) > 1 else 0
    named = set(observations.labels("size")[kept])
    if variable == "params" and named != {"custom"}:
        return len(named)
    values = np.sort(np.log(observations.column(variable)[kept]))
    return 1 + int((np.diff(values) > _SAME_LEVEL).sum())


def trouble(observations: Observations, form: Form, kept: np.ndarray | None = None) -> str | None:
    """Why the data (or the rows `kept` of them) cannot determine a form, in one line; None if they can."""
    for variable, needed in zip(form.variables, form.needs):
        found = levels(observations, variable, kept)
        if found < needed and variable == "images_seen":
            return (
                f"too few levels: {form.name} needs two cells scored at {needed} training steps, there are {found}, "
                f"{needed - found} more"
            )
        if found < needed:
            return (
                f"too few levels: {form.name} needs {needed} of {SYMBOLS[variable]} ({variable}), there are {found}, "
                f"{needed - found} more"
            )
    cells = len(set(observations.cells if kept is None else observations.cells[kept]))
    if cells < form.size + 1:
        return f"too few cells: {form.name} has {form.size} parameters, there are {cells} cells, {form.size + 1 - cells} more"
    return None


def decades_beyond(form: Form, data: Observations, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """How far outside the data each cell lies: the largest distance over the form's variables and training compute, in decades."""
    names = [*form.variables, *(["train_gflops"] if "train_gflops" in columns else [])]
    distance = np.zeros(len(np.atleast_1d(columns[form.variables[0]])))
    for name in names:
        seen, value = np.log10(data.column(name)), np.log10(np.asarray(columns[name], dtype=float))
        distance = np.maximum(distance, np.maximum(value - seen.max(), seen.min() - value))
    return np.maximum(distance, 0.0)


def notes(form: Form, data: Observations, residual: np.ndarray, jacobian: np.ndarray) -> list[Note]:
    """Notes on a fit from its log residuals (n,) and derivatives (n, p)."""
    return [*_few(form, data), *_trend(data, residual), *_leverage(data, jacobian), *_not_monotone(data)]


def lack_of_fit(residual_sd: float, noise_sd: float | None) -> list[Note]:
    """Said when the scatter about the law is far above the noise between two trainings: the form misses something."""
    if not noise_sd or residual_sd < _LACK * noise_sd:
        return []
    times = residual_sd / noise_sd
    return [
        Note(
            "lack_of_fit",
            f"scatter about the law is {times:.0f} times the noise between seeds: the form misses something",
        )
    ]


def _few(form: Form, data: Observations) -> list[Note]:
    found = []
    for variable in form.variables:
        count = levels(data, variable)
        if count < 3:
            found.append(
                Note(
                    "too_few_levels", f"{count} levels of {VARIABLES[variable].split(',')[0]}: its curvature is unseen"
                )
            )
    return found


def _trend(data: Observations, residual: np.ndarray) -> list[Note]:
    """Residuals that keep rising or falling with compute: the form bends otherwise than the data do."""
    if len(residual) < 8 or np.ptp(residual) < 1e-9:
        return []
    slope, chance = np.asarray(spearmanr(data.column("train_gflops"), residual), dtype=float)
    bend = _curvature(np.log(data.column("train_gflops")), residual)
    found = []
    if chance < 0.01:
        word = "rise" if slope > 0 else "fall"
        found.append(Note("trend", f"residuals {word} with training compute (rank correlation {slope:.2f})"))
    if abs(bend) > t.ppf(0.995, len(residual) - 3):
        side = "above" if bend > 0 else "below"
        found.append(
            Note("trend", f"residuals at both ends of compute lie {side} those in the middle: the form bends otherwise")
        )
    return found


def _curvature(x: np.ndarray, y: np.ndarray) -> float:
    """Student's t of the square term in a parabola through (x, y)."""
    x = (x - x.mean()) / x.std()
    design = np.stack([np.ones_like(x), x, x**2], axis=1)
    coefficients, *_ = np.linalg.lstsq(design, y, rcond=None)
    variance = np.sum((y - design @ coefficients) ** 2) / (len(y) - 3)
    return float(coefficients[2] / np.sqrt(variance * np.linalg.inv(design.T @ design)[2, 2]))


def _leverage(data: Observations, jacobian: np.ndarray) -> list[Note]:
    """Scores that the law passes through whatever they are: leverage in the linearised fit above 0.98."""
    scaled = jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300)
    left = np.linalg.svd(scaled, full_matrices=False)[0]
    leverage = (left**2).sum(1)
    names = data.rows["run"].to_numpy()
    found = [str(names[index]) for index in np.flatnonzero(leverage > 0.98)]
    return [Note("leverage", f"the law is pinned by {', '.join(found[:4])}: leverage above 0.98")] if found else []


def _not_monotone(data: Observations) -> list[Note]:
    """Sizes that are worse than the next smaller one at equal block, patch and step."""
    rows = data.rows.assign(score=data.score)
    means = rows.groupby(["patch_size", "step", "params"])["score"].mean()
    worse = 0
    pairs = 0
    for _, part in means.groupby(level=["patch_size", "step"]):
        gains = np.diff(np.log(part.to_numpy()))
        worse, pairs = worse + int((gains > 0).sum()), pairs + len(gains)
    if not worse:
        return []
    return [
        Note("not_monotone", f"the larger of two sizes scores worse in {worse} of {pairs} steps up at equal patch size")
    ]


def bootstrap_note(wanted: int, converged: int) -> list[Note]:
    """Said when many replicates did not converge: intervals then leave out the hardest ones."""
    if converged >= _FEW_REPLICATES * wanted:
        return []
    return [
        Note(
            "bootstrap",
            f"{wanted - converged} of {wanted} resamples did not converge: intervals may be too narrow",
        )
    ]
