"""Forward-chained validation: fit on the small sizes, predict the next one, for every form; the errors choose the form.

Errors are of scores at the common training step, seeds averaged, predicted / measured - 1. A size is predicted from the smaller ones alone,
and once more with its cheapest cell known, which forms that need as many sizes can be fitted on too. Forms are ranked by the root mean
square of log errors over all folds; on one that a form cannot be fitted on it stands as the best that could, so that such a fold is
neither lost to the others nor held against it. Of equally good ones the form with the fewest parameters is taken.
Leave-one-out errors stand beside, they are of interpolation and usually smaller. Alabdulmohsin et al. arXiv:2209.06640 judge by
extrapolation likewise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from analysis.fits import diagnostics
from analysis.fits.fit import LOSS, Estimate, NotIdentified, Refusal, estimate_law, fit_law, problem_of, rows_for
from analysis.fits.laws import FORMS, Form, forms_for
from analysis.fits.noise import noise_of
from analysis.fits.observations import CELL, VARIABLES, Observations
from analysis.fits.record import Record
from analysis.fits.refine import RESAMPLE_TOLERANCE, minimise

_FOLD_REPLICATES = 100
_MOST_FOLDS = 4  # sizes that are predicted: the last ones
_COST = "train_gflops"
_TIE = 1.1  # forward errors within a tenth of each other, or within the noise, are equally good


@dataclass(frozen=True)
class HeldOut(Record):
    """One held-out score: predicted from the smaller sizes. `error` is predicted / measured - 1; `inside`: in the prediction interval."""

    cell: str
    predicted: float
    measured: float
    error: float
    inside: bool


@dataclass(frozen=True)
class Fold(Record):
    """One fold: `fitted_on` (sizes, and the cheapest cell of the predicted one where it is `begun`) -> `predicted` (size)."""

    fitted_on: tuple[str, ...]
    predicted: str
    held_out: tuple[HeldOut, ...]
    begun: bool = False


@dataclass(frozen=True)
class FormValidation(Record):
    """One form's folds. `median_error`, `max_error` are of |error| over the held-out scores, `rms_error` of log errors; None without.

    They are of sizes of which nothing was known, or of begun ones where the form could be fitted to no others.
    """

    form: str
    equation: str
    folds: tuple[Fold, ...]
    refusals: tuple[Refusal, ...]
    median_error: float | None
    max_error: float | None
    rms_error: float | None
    leave_one_out_median: float | None
    leave_one_out_max: float | None
    leave_one_size_out_median: float | None


@dataclass(frozen=True)
class Validation(Record):
    """All forms, and the one with the smallest forward error; `reason` says why it was chosen, or why none could be."""

    forms: tuple[FormValidation, ...]
    chosen: str | None
    reason: str

    def of(self, form: str) -> FormValidation:
        """One form's validation."""
        return next(one for one in self.forms if one.form == form)


def cell_means(observations: Observations) -> Observations:
    """One row per cell and step: the geometric mean over seeds."""
    rows = observations.rows.assign(**{observations.metric: np.log(observations.score)})
    keys = [*CELL, "step"]
    means = rows.groupby(keys, dropna=False, sort=False)[observations.metric].transform("mean")
    rows[observations.metric] = np.exp(means)
    first = ~rows.duplicated(keys)
    return replace(observations, rows=rows[first].reset_index(drop=True))


def cell_name(row: object) -> str:
    """A cell's short name, as in XL/2."""
    return f"{row.size}/{row.patch_size}"  # type: ignore[attr-defined]


def validate(observations: Observations, forms: tuple[str, ...] | None = None, loss: str = LOSS) -> Validation:
    """Forward-chain every form over the sizes of one block, in order of their parameters."""
    found = tuple(_one_form(observations, FORMS[name], loss) for name in forms or forms_for(observations))
    return Validation(found, *_choose(found, observations.sizes, noise_of(observations).sd))


def _one_form(observations: Observations, form: Form, loss: str) -> FormValidation:
    sizes = observations.sizes
    folds, refusals = [], []
    for count in range(max(2, len(sizes) - _MOST_FOLDS), len(sizes)):
        for begun in (True, False):
            try:
                folds.append(_fold(observations, form, loss, sizes, count, begun))
            except NotIdentified as reason:
                if not begun:
                    refusals.append(Refusal(form.name, f"fitted on {', '.join(sizes[:count])}: {reason}"))
    ahead = [fold for fold in folds if not fold.begun] or folds
    errors = [abs(one.error) for fold in ahead for one in fold.held_out]
    out, size_out = _left_out(observations, form, loss)
    return FormValidation(
        form=form.name,
        equation=form.equation,
        folds=tuple(folds),
        refusals=tuple(refusals),
        median_error=float(np.median(errors)) if errors else None,
        max_error=max(errors) if errors else None,
        rms_error=_rms(ahead),
        leave_one_out_median=float(np.median(np.abs(out))) if len(out) else None,
        leave_one_out_max=float(np.abs(out).max()) if len(out) else None,
        leave_one_size_out_median=float(np.median(np.abs(size_out))) if len(size_out) else None,
    )


def _fold(observations: Observations, form: Form, loss: str, sizes: list[str], count: int, begun: bool) -> Fold:
    """Size number `count` from the smaller ones, and, where it is `begun`, from its cheapest cell."""
    held, names, cells = sizes[count], observations.labels("size"), observations.cells
    fitted_on, kept = tuple(sizes[:count]), np.isin(names, sizes[:count])
    if begun:
        mine = np.flatnonzero(names == held)
        first = cells == cells[mine[np.argmin(observations.column(_COST)[mine])]]
        fitted_on, kept = (*fitted_on, cell_name(next(observations.at(first).rows.itertuples()))), kept | first
    law = fit_law(observations.at(kept), form.name, loss=loss, replicates=_FOLD_REPLICATES)
    target = observations.at(~kept & observations.common & (names == held))
    target = cell_means(target) if len(target) else target
    if not len(target):
        raise NotIdentified(f"{held} has no score at the common training step")
    predictions = law.predict({name: target.column(name) for name in VARIABLES})
    return Fold(
        fitted_on,
        held,
        tuple(
            HeldOut(cell_name(row), one.score, float(y), one.score / float(y) - 1, float(y) in one.prediction)
            for row, one, y in zip(target.rows.itertuples(), predictions, target.score)
        ),
        begun,
    )


def _left_out(observations: Observations, form: Form, loss: str) -> tuple[np.ndarray, np.ndarray]:
    """Relative errors at the common step of cells left out one at a time, and of sizes left out one at a time (without the ends)."""
    data = rows_for(observations, form)
    if diagnostics.trouble(data, form):
        return np.empty(0), np.empty(0)
    estimate, _, _ = estimate_law(data, form, loss, 0, noise_of(data), 0)
    cells, names = data.cells, data.labels("size")
    masks = [cells != one for one in range(cells.max() + 1)]
    size_masks = [names != one for one in data.sizes[1:-1]]
    return _errors(estimate, loss, masks), _errors(estimate, loss, size_masks)


def _errors(estimate: Estimate, loss: str, masks: list[np.ndarray]) -> np.ndarray:
    """Relative errors where each mask is False and the step is the last common one, from fits to where it is True."""
    form, data = estimate.form, estimate.data
    masks = [mask for mask in masks if not diagnostics.trouble(data, form, mask)]
    if not masks:
        return np.empty(0)
    u = np.log(np.stack([data.column(name) for name in form.variables], axis=1)) - estimate.centers
    target = np.log(data.score) - np.log(estimate.scale)
    start = np.repeat(estimate.theta[None], len(masks), axis=0)
    weights = np.stack(masks).astype(float)
    theta = minimise(problem_of(form, u, loss), start, target, weights, RESAMPLE_TOLERANCE)[0]
    predicted = form.log_score(theta, u)
    return np.concatenate([np.expm1((line - target)[~mask & data.common]) for line, mask in zip(predicted, masks)])


def _rms(folds: list[Fold] | tuple[Fold, ...]) -> float | None:
    errors = [square for fold in folds for square in _squares(fold)]
    return float(np.sqrt(np.mean(errors))) if errors else None


def _choose(forms: tuple[FormValidation, ...], sizes: list[str], noise_sd: float) -> tuple[str | None, str]:
    if len(sizes) < 3:
        return None, f"no forward validation: it needs three sizes, there are {len(sizes)} ({', '.join(sizes)})"
    able = [one for one in forms if any(fold.predicted == sizes[-1] for fold in one.folds)]
    if not able:
        return None, f"no form could be fitted on {', '.join(sizes[:-1])} to predict {sizes[-1]}"
    squares = {one.form: {(fold.fitted_on, fold.predicted): _squares(fold) for fold in one.folds} for one in able}
    folds = {key: len(values) for one in squares.values() for key, values in one.items()}
    best = {key: min(_mean(one[key]) for one in squares.values() if key in one) for key in folds}

    def error(form: str) -> float:
        own = squares[form]
        total = sum(count * (_mean(own[key]) if key in own else best[key]) for key, count in folds.items())
        return float(np.sqrt(total / sum(folds.values())))

    errors = {name: error(name) for name in squares}
    enough = max(_TIE * min(errors.values()), noise_sd)
    chosen = min(errors, key=lambda name: (errors[name] > enough, FORMS[name].size, errors[name]))
    predicted = ", then ".join(f"{', '.join(fitted_on)} -> {held}" for fitted_on, held in folds)
    largest = {one.form: one.max_error or 0.0 for one in able}
    others = ", ".join(f"{name} {one:.1%} ({largest[name]:.0%})" for name, one in errors.items() if name != chosen)
    beside = f"; others: {others}" if others else " (the only form that could be fitted)"
    rule = "smallest forward error" if errors[chosen] == min(errors.values()) else "fewest parameters of the best forms"
    said = f"{rule} ({predicted}): {errors[chosen]:.1%} rms of log scores, largest error {largest[chosen]:.0%}{beside}"
    lacking = [", ".join(key[0]) for key in folds if key not in squares[chosen]]
    return chosen, said + (f"; it could not be fitted on {' nor on '.join(lacking)}" if lacking else "")


def _squares(fold: Fold) -> list[float]:
    """Squared log errors of a fold."""
    return [float(np.log1p(one.error) ** 2) for one in fold.held_out]


def _mean(values: list[float]) -> float:
    return float(np.mean(values))
