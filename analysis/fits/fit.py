"""One form fitted to scores: parameters with intervals, predictions with bands, and curves to draw.

`fit_law` returns a `LawFit`. To plot it: `LawFit.curve("train_gflops")` (or any variable of the form, the others held) gives a
`record.Curve` with `x`, `y`, a confidence band (where the law is) and a prediction band (where a new run's score falls).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from analysis.fits import bootstrap, diagnostics, varpro
from analysis.fits.laws import FORMS, LOOSE_EXPONENT, MAX_EXPONENT, SYMBOLS, Form
from analysis.fits.noise import Noise, noise_of
from analysis.fits.observations import VARIABLES, Observations
from analysis.fits.record import HIDDEN, Curve, Interval, Note, Parameter, Record, interval, new_score_limits, quantiles
from analysis.fits.refine import DELTA, Problem, minimise
from dit.errors import UserError

LOSS = "squares"
LOSSES = {
    LOSS: "sum of squares: of log residuals for log-linear forms, of relative residuals for additive ones",
    "huber": "Huber loss (delta 1e-3) on log residuals, summed",
}
"""Least squares unless told: at the scatter of scores a delta of 1e-3 is least absolute deviations, whose intervals are wider."""
REPLICATES = 1000


class NotIdentified(Exception):
    """The data cannot determine this form; the message is the one-line reason."""


@dataclass(frozen=True)
class Refusal(Record):
    """A form that was not fitted, and why."""

    form: str
    reason: str


@dataclass(frozen=True)
class Prediction(Record):
    """A predicted score: `confidence` is of the law, `prediction` of one new run's score; `decades_beyond` the data (0 within)."""

    score: float
    confidence: Interval
    prediction: Interval
    decades_beyond: float


@dataclass(frozen=True)
class Estimate:
    """Point estimate and replicates in centred, scaled parameters: theta (p,), replicates (b, p), `data` it was fitted to."""

    form: Form
    data: Observations
    centers: np.ndarray
    scale: float
    theta: np.ndarray
    replicates: np.ndarray
    new_run_sd: float

    def log_score(self, theta: np.ndarray, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Log scores (b, m) at m cells for parameters (b, p)."""
        u = np.stack([np.log(np.asarray(columns[name], dtype=float)) for name in self.form.variables], axis=-1)
        return self.form.log_score(theta, u - self.centers) + np.log(self.scale)


@dataclass(frozen=True)
class LawFit(Record):
    """A fitted law. `equation` is in the symbols of `parameters`; `residual_sd` is relative (of log scores, per degree of freedom).

    `centre`: geometric mean of each variable over the data, where a surface's exponents are those of its parameters.
    """

    form: str
    equation: str
    variables: tuple[str, ...]
    block: str
    metric: str
    label: str
    parameters: tuple[Parameter, ...]
    points: int
    runs: int
    cells: int
    loss: str
    residual_sd: float
    noise: Noise
    notes: tuple[Note, ...]
    centre: dict[str, float]
    estimate: Estimate = field(**HIDDEN)

    def predict(self, columns: Mapping[str, np.ndarray], extra_sd: float = 0.0) -> list[Prediction]:
        """Predictions at cells given by columns of the results table (`params`, `tokens`, `images_seen`, `train_gflops`).

        Args:
            extra_sd: relative standard deviation of a new run's score about the law where it is more than the fit's own scatter.
        """
        point, law, new = self._bands(columns, extra_sd)
        beyond = diagnostics.decades_beyond(self.estimate.form, self.estimate.data, columns)
        return [
            Prediction(float(point[at]), Interval(*law[:, at]), Interval(*new[:, at]), float(beyond[at]))
            for at in range(len(point))
        ]

    def curve(self, variable: str, points: int = 100, reach: float = 0.0, **held: float) -> Curve:
        """The law along `variable`, `reach` decades past the data at either end; the form's other variables at `held`.

        Raises:
            UserError: if the form does not have the variable, or another variable is not held.
        """
        if variable not in self.variables:
            raise UserError(f"form {self.form} has no {variable}: expected one of {', '.join(self.variables)}")
        seen = self.estimate.data.column(variable)
        x = np.geomspace(seen.min() / 10**reach, seen.max() * 10**reach, points)
        columns = {variable: x}
        for other in self.variables:
            if other != variable:
                if other not in held:
                    raise UserError(f"form {self.form} varies with {other} too: hold it, as in curve(..., {other}=...)")
                columns[other] = np.full(points, float(held[other]))
        y, law, new = self._bands(columns, 0.0)
        name = ", ".join([self.form, *(f"{SYMBOLS[other]}={value:.3g}" for other, value in held.items())])
        bands = [tuple(float(one) for one in values) for values in (x, y, *law, *new)]
        return Curve(name, variable, self.metric, *bands, measured=(float(seen.min()), float(seen.max())))

    def _bands(self, columns: Mapping[str, np.ndarray], extra_sd: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores (m,), confidence limits (2, m) and prediction limits (2, m)."""
        estimate = self.estimate
        point = estimate.log_score(estimate.theta[None], columns)[0]
        laws = estimate.log_score(estimate.replicates, columns)
        new = new_score_limits(laws, max(estimate.new_run_sd, extra_sd))
        return np.exp(point), np.exp(quantiles(laws)), np.exp(new)


def problem_of(form: Form, u: np.ndarray, loss: str) -> Problem:
    """The minimisation behind a loss of `LOSSES`."""
    if loss not in LOSSES:
        raise UserError(f"unknown loss '{loss}': expected one of {', '.join(LOSSES)}")
    if loss == "huber":
        return Problem(form, u, delta=DELTA)
    return Problem(form, u, delta=np.inf, relative=form.additive)


def rows_for(observations: Observations, form: Form) -> Observations:
    """The rows that a form is fitted to: all steps, or the common one."""
    return observations if form.steps == "all" else observations.at_common_step()


def estimate_law(
    data: Observations, form: Form, loss: str, replicates: int, noise: Noise, seed: int
) -> tuple[Estimate, Problem, np.ndarray]:
    """Point estimate (best of many starts) and bootstrap replicates; with them the problem and the log residuals (n,)."""
    u = np.log(np.stack([data.column(name) for name in form.variables], axis=1))
    log_score = np.log(data.score)
    centers, scale = u.mean(0), float(np.exp(log_score.mean()))
    problem, target = problem_of(form, u - centers, loss), log_score - np.log(scale)
    weights = np.ones(len(target))
    theta, value, _ = minimise(problem, varpro.starts(form, problem.u, target, weights), target, weights)
    best = theta[np.argmin(value)]
    residual = target - form.log_score(best[None], problem.u)[0]
    cells = int(data.cells.max()) + 1
    scatter = float(np.sqrt(np.mean(residual**2))) * bootstrap.inflation(cells, form.size)
    found = best[None]
    if replicates:
        rng = np.random.default_rng(seed)
        moved = bootstrap.perturbations(
            residual, data.cells, data.cells, data.runs, form.size, noise.of_cells(data), replicates, rng
        )
        found = bootstrap.resample(problem, best, moved)
    return Estimate(form, data, centers, scale, best, found, max(scatter, noise.run_sd)), problem, residual


def fit_law(
    observations: Observations, form: str, *, loss: str = LOSS, replicates: int = REPLICATES, seed: int = 0
) -> LawFit:
    """Fit one of `laws.FORMS` to one block's scores. Deterministic for equal arguments.

    Raises:
        NotIdentified: if the data have too few levels or cells for the form, or several blocks.
        UserError: for an unknown form or loss.
    """
    if form not in FORMS:
        raise UserError(f"unknown form '{form}': expected one of {', '.join(FORMS)}")
    shape = FORMS[form]
    data = rows_for(observations, shape)
    blocks = sorted(set(data.labels("block")))
    if len(blocks) > 1:
        raise NotIdentified(f"several blocks ({', '.join(blocks)}) in one law: fit one, or compare blocks")
    if reason := diagnostics.trouble(data, shape):
        raise NotIdentified(reason)
    noise = noise_of(observations)
    estimate, problem, residual = estimate_law(data, shape, loss, replicates, noise, seed)
    jacobian = shape.jacobian(estimate.theta[None], problem.u)[0]
    cells = int(data.cells.max()) + 1
    residual_sd = float(np.sqrt(np.mean(residual**2))) * bootstrap.inflation(cells, shape.size)
    found = diagnostics.notes(shape, data, residual, jacobian)
    found += diagnostics.lack_of_fit(residual_sd, noise.relative_sd)
    found += diagnostics.bootstrap_note(replicates, len(estimate.replicates)) if replicates else []
    parameters = _parameters(estimate)
    found += [Note("at_bound", f"{one.name} is {one.said}") for one in parameters if one.value is None and one.said]
    found += _local_exponents(estimate) if shape.interaction else []
    found += _robust(estimate, problem, residual, parameters) if loss == LOSS else []
    return LawFit(
        form=form,
        equation=shape.equation,
        variables=shape.variables,
        block=blocks[0],
        metric=data.metric,
        label=data.label,
        parameters=parameters,
        points=len(data),
        runs=int(data.runs.max()) + 1,
        cells=cells,
        loss=loss,
        residual_sd=residual_sd,
        noise=noise,
        notes=tuple(found),
        centre={name: float(np.exp(one)) for name, one in zip(shape.variables, estimate.centers)},
        estimate=estimate,
    )


def _local_exponents(estimate: Estimate) -> list[Note]:
    """The exponents of N and of T over the data's range of the other, which the interaction changes."""
    theta, said = estimate.theta, []
    for at, other in ((0, 1), (1, 0)):
        name = SYMBOLS[estimate.form.variables[other]]
        values = np.unique(estimate.data.column(estimate.form.variables[other]))
        values = values if len(values) <= 4 else values[[0, -1]]
        local = theta[1 + at] + theta[-1] * (np.log(values) - estimate.centers[other])
        each = ", ".join(f"{one:.3f} at {name} = {value:.4g}" for one, value in zip(local, values))
        said.append(f"in {SYMBOLS[estimate.form.variables[at]]} {each}")
    return [Note("local", f"local exponents: {'; '.join(said)}")]


def _robust(
    estimate: Estimate, problem: Problem, residual: np.ndarray, parameters: tuple[Parameter, ...]
) -> list[Note]:
    """Said where Huber's loss at 1.345 standard deviations of the scatter (by its median) moves a parameter out of its interval."""
    sd = float(np.median(np.abs(residual))) / 0.6745
    if sd < 1e-9 or not any(one.interval for one in parameters):
        return []
    form, robust = estimate.form, replace(problem, delta=1.345 * sd)
    target = form.log_score(estimate.theta[None], problem.u)[0] + residual
    theta = minimise(robust, estimate.theta[None], target, np.ones(len(target)))[0]
    moved = form.natural(theta, estimate.centers, estimate.scale)[0]
    apart = [
        f"{one.name} {value:.4g}"
        for one, value in zip(parameters, moved)
        if one.interval is not None and float(value) not in one.interval
    ]
    if not apart:
        return []
    return [Note("robust", f"few scores decide: Huber's loss, to which they mean less, gives {', '.join(apart)}")]


def _parameters(estimate: Estimate) -> tuple[Parameter, ...]:
    """Parameters in natural units; one at its bound has no value, and an exponent whose amplitude is at its bound neither."""
    form, theta = estimate.form, estimate.theta
    value = form.natural(theta[None], estimate.centers, estimate.scale)[0]
    spread = form.natural(estimate.replicates, estimate.centers, estimate.scale)
    lower, upper = form.bounds()
    names = form.parameter_names
    terms, first = len(form.variables), int(form.irreducible)
    found = []
    for at, name in enumerate(names):
        said = None
        if form.additive and theta[at] <= lower[at]:
            high = np.quantile(spread[:, at], 0.975)
            said = f"at its bound 0: not identified by these scores (97.5 % of resamples lie below {high:.3g})"
        elif form.additive and theta[at] >= 0.999 * upper[at]:
            said = f"at its bound {MAX_EXPONENT:g}: not identified by these scores"
        elif form.additive and at >= first + terms and theta[at - terms] <= 0:
            said = f"not identified: its amplitude {names[at - terms]} is at its bound 0"
        known = said is None
        between = interval(spread[:, at]) if known and len(spread) > 1 else None
        exponent = at if at >= first + terms else at + terms
        if (
            form.additive
            and between
            and name != "E"
            and np.quantile(estimate.replicates[:, exponent], 0.975) > LOOSE_EXPONENT
        ):
            said = f"hardly identified: the interval of {names[exponent]} reaches its bound {MAX_EXPONENT:g}"
        found.append(
            Parameter(
                name=name,
                value=float(value[at]) if known else None,
                interval=between,
                said=said,
                meaning=_meaning(form, at),
            )
        )
    return tuple(found)


def _meaning(form: Form, at: int) -> str:
    """What the parameter in that place is."""
    name, terms, first = form.parameter_names[at], len(form.variables), int(form.irreducible)
    if name == "E":
        return "irreducible score"
    if form.additive or form.name == "power":
        amplitude = at < first + terms
        return ("amplitude of " if amplitude else "exponent of ") + VARIABLES[form.variables[(at - first) % terms]]
    if name == "c_NT":
        return "interaction of N and T"
    return "log L at the centre" if at == 0 else "exponent at the centre of " + VARIABLES[form.variables[at - 1]]
