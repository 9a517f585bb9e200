"""Forward-chained validation: fit on the small sizes, predict the next one, for every form; the errors choose the form.

Errors are of scores at the common training step, seeds averaged, predicted / measured - 1. Forms are ranked by the root mean square of log
errors over the folds that all of them could be fitted on (what cannot be fitted on the last fold is not chosen); of equally good
ones the form with the fewest parameters is taken.
Leave-one-out errors stand beside, they are of interpolation and usually smaller. Alabdulmohsin et al. arXiv:2209.06640 judge by
extrapolation likewise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.fits import diagnostics
from analysis.fits.fit import Estimate, NotIdentified, Refusal, estimate_law, fit_law, problem_of, rows_for
from analysis.fits.laws import FORMS, Form
from analysis.fits.noise import noise_of
from analysis.fits.observations import CELL, VARIABLES, Observations
from analysis.fits.record import Record
from analysis.fits.refine import RESAMPLE_TOLERANCE, minimise

_FOLD_REPLICATES = 100
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
    """One fold: `fitted_on` (sizes) -> `predicted` (size)."""

    fitted_on: tuple[str, ...]
    predicted: str
    held_out: tuple[HeldOut, ...]


@dataclass(frozen=True)
class FormValidation(Record):
    """One form's folds. `median_error`, `max_error` are of |error| over all held-out scores, `rms_error` of log errors; None without."""

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
    return Observations(
        observations.study,
        rows[first].reset_index(drop=True),
        observations.metric,
        observations.label,
        observations.protocol,
        observations.left_out,
    )


def cell_name(row: object) -> str:
    """A cell's short name, as in XL/2."""
    return f"{row.size}/{row.patch_size}"  # type: ignore[attr-defined]


def validate(observations: Observations, forms: tuple[str, ...] | None = None, loss: str = "huber") -> Validation:
    """Forward-chain every form over the sizes of one block, in order of their parameters."""
    found = tuple(_one_form(observations, FORMS[name], loss) for name in forms or FORMS)
    return Validation(found, *_choose(found, observations.sizes, noise_of(observations).sd))


def _one_form(observations: Observations, form: Form, loss: str) -> FormValidation:
    sizes = observations.sizes
    folds, refusals = [], []
    for count in range(2, len(sizes)):
        try:
            folds.append(_fold(observations, form, loss, tuple(sizes[:count]), sizes[count]))
        except NotIdentified as reason:
            refusals.append(Refusal(form.name, f"fitted on {', '.join(sizes[:count])}: {reason}"))
    errors = [abs(one.error) for fold in folds for one in fold.held_out]
    out, size_out = _left_out(observations, form, loss)
    return FormValidation(
        form=form.name,
        equation=form.equation,
        folds=tuple(folds),
        refusals=tuple(refusals),
        median_error=float(np.median(errors)) if errors else None,
        max_error=max(errors) if errors else None,
        rms_error=_rms(folds),
        leave_one_out_median=float(np.median(np.abs(out))) if len(out) else None,
        leave_one_out_max=float(np.abs(out).max()) if len(out) else None,
        leave_one_size_out_median=float(np.median(np.abs(size_out))) if len(size_out) else None,
    )


def _fold(observations: Observations, form: Form, loss: str, fitted_on: tuple[str, ...], held: str) -> Fold:
    names = observations.labels("size")
    law = fit_law(observations.at(np.isin(names, fitted_on)), form.name, loss=loss, replicates=_FOLD_REPLICATES)
    common = observations.at_common_step()
    target = cell_means(common.at(common.labels("size") == held))
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
    last = data.rows["step"].to_numpy() == data.at_common_step().rows["step"].iloc[0]
    return np.concatenate([np.expm1((line - target)[~mask & last]) for line, mask in zip(predicted, masks)])


def _rms(folds: list[Fold] | tuple[Fold, ...]) -> float | None:
    errors = [np.log1p(one.error) for fold in folds for one in fold.held_out]
    return float(np.sqrt(np.mean(np.square(errors)))) if errors else None


def _choose(forms: tuple[FormValidation, ...], sizes: list[str], noise_sd: float) -> tuple[str | None, str]:
    if len(sizes) < 3:
        return None, f"no forward validation: it needs three sizes, there are {len(sizes)} ({', '.join(sizes)})"
    able = [one for one in forms if any(fold.predicted == sizes[-1] for fold in one.folds)]
    if not able:
        return None, f"no form could be fitted on {', '.join(sizes[:-1])} to predict {sizes[-1]}"
    shared = set.intersection(*({fold.predicted for fold in one.folds} for one in able))
    errors = {one.form: _rms([fold for fold in one.folds if fold.predicted in shared]) or 0.0 for one in able}
    enough = max(_TIE * min(errors.values()), noise_sd)
    chosen = min(errors, key=lambda name: (errors[name] > enough, FORMS[name].size, errors[name]))
    predicted = ", then ".join(f"{', '.join(sizes[: sizes.index(one)])} -> {one}" for one in sizes if one in shared)
    others = ", ".join(f"{name} {error:.1%}" for name, error in errors.items() if name != chosen)
    beside = f"; others: {others}" if others else " (the only form that could be fitted)"
    rule = "smallest forward error" if errors[chosen] == min(errors.values()) else "fewest parameters of the best forms"
    return chosen, f"{rule} ({predicted}): {errors[chosen]:.1%} rms of log scores{beside}"
