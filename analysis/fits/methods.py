"""The methods box of a fit: what a reader needs to redo it (the checklist of Li et al., arXiv:2502.18969), filled in by the code."""

from __future__ import annotations

from dataclasses import dataclass

from analysis import protocols
from analysis.fits import refine, varpro
from analysis.fits.fit import LOSSES, LawFit
from analysis.fits.laws import FORMS, MAX_EXPONENT
from analysis.fits.observations import VARIABLES, Observations
from analysis.fits.record import LEVEL, Record
from analysis.fits.validation import Validation


@dataclass(frozen=True)
class MethodsBox(Record):
    """(topic, text) in reading order: form, variables, Gflops convention, data, loss, optimiser, bounds, bootstrap, noise, errors."""

    items: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        width = max(len(topic) for topic, _ in self.items)
        return "\n".join(f"{topic:<{width}}  {text}" for topic, text in self.items)


def methods_box(fit: LawFit, observations: Observations, validation: Validation | None) -> MethodsBox:
    """The box of one fit."""
    form, data, estimate = FORMS[fit.form], fit.estimate.data, fit.estimate
    steps = sorted({int(step) for step in data.rows["step"]})
    table = observations.of_table
    at = f"after {steps[0]:,} steps" if len(steps) == 1 else f"at {len(steps)} steps from {steps[0]:,} to {steps[-1]:,}"
    at = f"{len(steps)} values of D" if table else at
    ranges = ", ".join(
        f"{name} {data.column(name).min():.3g} to {data.column(name).max():.3g}"
        for name in dict.fromkeys([*form.variables, "train_gflops"])
    )
    grid = varpro.GRID[len(form.variables)] ** len(form.variables)
    starts = (
        f"{varpro.STARTS} best of a grid of {grid:,} exponents ({varpro.SMALLEST} to {varpro.LARGEST}), "
        "amplitudes by non-negative least squares"
        if form.additive
        else "the least squares solution (the loss is convex in these parameters)"
    )
    chosen = validation.of(fit.form) if validation else None
    known = observations.training != "not recorded"
    averaged = "moving average, older than 5 / (1 - decay) steps" if known else "moving average, decay not recorded"
    items = [
        ("form", f"{form.equation} ({form.name})"),
        *(_counted_by_table(observations) if table else _counted(form.variables)),
        ("score", f"{fit.label}: {protocols.describe(observations.protocol)}"),
        ("data", f"block {fit.block}, {fit.points} scores of {fit.runs} runs in {fit.cells} cells, {at}; {ranges}"),
        ("training", observations.training),
        (
            "averages",
            "of the weights as they were" if not observations.protocol.get("ema") else observations.young or averaged,
        ),
        ("loss", LOSSES[fit.loss]),
        (
            "optimiser",
            "variable projection, then damped Gauss-Newton and Newton steps with analytic derivatives, projected on the bounds",
        ),
        ("starts", starts),
        ("tolerance", f"{refine.TOLERANCE:g} relative in every parameter, at most {refine.ITERATIONS} iterations"),
        (
            "bounds",
            f"E, amplitudes and exponents from 0, exponents to {MAX_EXPONENT:g}" if form.additive else "none",
        ),
        (
            "bootstrap",
            f"cluster bootstrap over cells, {len(estimate.replicates)} replicates, Student's t for the degrees of freedom; "
            f"{LEVEL:.0%} percentile intervals; bands of a new run solved, not drawn",
        ),
        (
            "noise",
            fit.noise.source
            if fit.noise.relative_sd is None
            else f"{fit.noise.relative_sd:.2%} relative; {fit.noise.source}",
        ),
        ("scatter about the law", f"{fit.residual_sd:.2%} relative, per degree of freedom"),
        ("held-out error", _held_out(fit, validation)),
    ]
    if chosen and chosen.leave_one_out_median is not None:
        text = f"median {chosen.leave_one_out_median:.1%}, largest {chosen.leave_one_out_max:.1%}"
        if chosen.leave_one_size_out_median is not None:
            text += f"; a middle size left out: median {chosen.leave_one_size_out_median:.1%}"
        items.append(("leave-one-cell-out", text))
    return MethodsBox(tuple(items))


def _counted(variables: tuple[str, ...]) -> list[tuple[str, str]]:
    counted = "one multiply-add is one flop; one forward pass of one image, VAE excluded; training is Gflops x batch x steps x 3"
    return [
        *(("variable", VARIABLES[name]) for name in variables),
        ("parameters counted", "trainable ones with embeddings; the frozen position embedding is left out"),
        ("Gflops", counted),
    ]


def _counted_by_table(observations: Observations) -> list[tuple[str, str]]:
    counted = "as the table counts it" if observations.protocol["counted"] else "not in the table: 6 N D"
    return [("N and D", "as the table counts them"), ("C", counted)]


def _held_out(fit: LawFit, validation: Validation | None) -> str:
    if validation is None:
        return "not validated"
    one = validation.of(fit.form)
    if not one.folds:
        reason = one.refusals[-1].reason if one.refusals else validation.reason
        return f"none: {reason}"
    folds = "; ".join(
        f"{', '.join(fold.fitted_on)} -> {fold.predicted}: "
        + ", ".join(f"{held.cell} {held.error:+.1%}" for held in fold.held_out)
        for fold in one.folds
    )
    chosen = "" if validation.chosen == fit.form else " (not the chosen form)"
    return f"rms {one.rms_error:.1%}, largest {one.max_error:.1%}{chosen}. {folds}"
