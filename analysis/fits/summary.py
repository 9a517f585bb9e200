"""Conclusions as text for a terminal: tables of numbers with intervals, refusals in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tabulate import tabulate

from analysis.advise import Advice
from analysis.fits.blocks import BlockComparison
from analysis.fits.conclusions import Conclusions
from analysis.fits.correlation import Correlations
from analysis.fits.fit import LawFit, Refusal
from analysis.fits.frontier import Frontier
from analysis.fits.isoflop import IsoFlop
from analysis.fits.optimum import Optimum
from analysis.fits.record import Note, Parameter
from analysis.fits.sampling import SamplingLaw
from analysis.fits.validation import Validation
from analysis.forecast import Forecast, ScoredForecast
from dit.design.rows import Row

if TYPE_CHECKING:
    from analysis.paired import Effect


def text(found: Conclusions) -> str:
    """Everything, in sections."""
    sections = [
        f"{found.study}: {found.scores} scores, {found.label}",
        _notes(found.notes),
        _section("Laws of block " + found.block, "\n\n".join(law_text(law) for law in found.laws) or "none"),
        _section("Not fitted", "\n".join(f"{one.form}: {one.reason}" for one in found.refusals)),
        _section("Forward validation", _validation(found.validation)),
        _section("Correlations", _correlations(found.correlations)),
        _section("Blocks", _blocks(found.blocks)),
        _section("Frontier", _frontier(found.frontier)),
        _section("isoFLOP", "\n\n".join(_isoflop(one) for one in found.isoflops)),
        _section("Best N and D for a budget", _optimum(found.optimum)),
        _section("Sampling steps", _sampling(found.sampling)),
        _section("Methods of the first law", "" if found.methods is None else str(found.methods)),
    ]
    return "\n\n".join(section for section in sections if section)


def effect_text(found: Effect) -> str:
    """What a field does to the scores: a table of means, and the sentences."""
    rows = found.rows
    heads = list(dict.fromkeys(name for row in rows for name in row))
    means = table([[str(row.get(name, "")) for name in heads] for row in rows], heads)
    return _section(f"{found.shown.label} by {found.axis.field}", "\n".join([means, *found.sentences]))


def titled(name: str, body: str) -> str:
    """A part of the text under a value's name."""
    return f"{name}\n{'#' * len(name)}\n{body}"


def parameter(one: Parameter) -> list[str]:
    """Name, value, interval and remark; a number that is not determined is a dash."""
    value = "-" if one.value is None else f"{one.value:.5g}"
    return [one.name, value, "-" if one.interval is None else str(one.interval), one.said or one.meaning]


def table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    """An aligned table."""
    return tabulate(rows, headers=headers, disable_numparse=True)


def _section(title: str, body: str) -> str:
    return f"{title}\n{'=' * len(title)}\n{body}" if body else ""


def _notes(notes: Sequence[Note]) -> str:
    return "\n".join(f"! {note.text}" for note in notes)


def law_text(law: LawFit) -> str:
    """One law: its parameters and notes."""
    rows = [parameter(one) for one in law.parameters]
    head = f"{law.form}: {law.equation}  ({law.points} scores, {law.cells} cells, scatter {law.residual_sd:.1%})"
    notes = [note for note in law.notes if note.kind != "at_bound"]
    return "\n".join([head, table(rows, ["", "value", "95 %", ""]), *([_notes(notes)] if notes else [])])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _validation(validation: Validation) -> str:
    rows = []
    for one in validation.forms:
        if one.folds:
            folds = "; ".join(
                f"{'+'.join(fold.fitted_on)}->{fold.predicted}: "
                + ", ".join(f"{held.cell} {held.error:+.0%}" for held in fold.held_out)
                for fold in one.folds
            )
        else:
            folds = one.refusals[-1].reason if one.refusals else "-"
        errors = [_percent(value) for value in (one.rms_error, one.max_error, one.leave_one_out_median)]
        rows.append([("* " if one.form == validation.chosen else "  ") + one.form, *errors, folds])
    chosen = "no form is chosen" if validation.chosen is None else f"chosen: {validation.chosen}"
    body = table(rows, ["form", "rms of logs", "largest", "leave one out", "folds (predicted / measured - 1)"])
    return f"{body}\n{chosen}; {validation.reason}"


def _correlations(found: Correlations | Refusal) -> str:
    if isinstance(found, Refusal):
        return f"refused: {found.reason}"
    rows = []
    for one in (
        found.gflops_score,
        found.gflops_log_score,
        found.gflops_rank,
        found.params_log_score,
        found.gflops_given_params,
        found.params_given_gflops,
    ):
        given = f" | {one.given}" if one.given else ""
        rows.append(
            [f"{one.x}, {one.y}{given}", one.kind, f"{one.value:.2f}", str(one.interval or "-"), f"{one.chance:.4f}"]
        )
    head = f"block {found.block} after {found.step:,} steps, {found.gflops_score.cells} cells"
    nominal = "(a fixed grid, not pairs at random: intervals are nominal; chance: scores dealt to the cells at random)"
    return "\n".join([head, table(rows, ["of", "", "r", "nominal 95 %", "chance"]), found.said, nominal])


def _blocks(found: BlockComparison | Refusal) -> str:
    if isinstance(found, Refusal):
        return f"refused: {found.reason}"
    rows = []
    for one in found.multipliers:
        rows.append(
            [
                one.block,
                "-" if one.multiplier is None else f"{one.multiplier:.3g}",
                str(one.interval or "-"),
                f"{one.score_ratio:.3f}",
                str(one.score_ratio_interval or "-"),
                str(one.cells),
                one.said or "",
            ]
        )
    head = f"times the compute of {found.reference} for the same score; {found.equation}"
    body = table(rows, ["block", "compute x", "95 %", "score x", "95 %", "cells", ""])
    factors = [
        [
            one.block,
            "-" if one.factor is None else f"{one.factor:.3g}",
            str(one.interval or "-"),
            "-" if one.compute_factor is None else f"{one.compute_factor:.3g}",
            str(one.cells),
            one.said or "",
        ]
        for one in found.steps
    ]
    heads = ["block", "training steps x", "95 %", "compute x", "cells", "at one size and patch size"]
    parts = [head, body, *([table(factors, heads)] if factors else [])]
    return "\n".join([*parts, *([_notes(found.notes)] if found.notes else [])])


def _frontier(found: Frontier | Refusal) -> str:
    if isinstance(found, Refusal):
        return f"refused: {found.reason}"
    rows = [
        [
            f"{one.train_gflops:.3e}",
            f"{one.score:.5g}",
            str(one.interval or "-"),
            one.block,
            f"{one.size}/{one.patch_size}",
            f"{one.step:,}",
        ]
        for one in found.points
    ]
    off = [one for one in found.gaps if not one.on_frontier]
    lines = [table(rows, ["training Gflops", found.metric, "noise 95 %", "block", "cell", "step"])]
    best = [
        [
            f"{one.train_gflops:.3e}",
            f"{one.block} {one.size}/{one.patch_size}",
            f"{one.score:.4g}",
            "-" if one.probability is None else f"{one.probability:.0%}",
        ]
        for one in found.optimal
    ]
    lines += ["", table(best, ["budget (Gflops)", "best cell", found.metric, "stays best under the noise"])]
    if off:
        apart = ", ".join(f"{one.block} {one.cell} x{one.ratio:.3f}" for one in sorted(off, key=lambda one: one.ratio))
        lines.append(f"above the frontier, times its score at equal compute: {apart}")
    return "\n".join([*lines, *([_notes(found.notes)] if found.notes else [])])


def _isoflop(found: IsoFlop | Refusal) -> str:
    if isinstance(found, Refusal):
        return f"refused: {found.reason}"
    rows = []
    for one in found.budgets:
        optimum = "-" if one.optimum_params is None else f"{one.optimum_params:.3g}"
        parametric = "-" if one.parametric_params is None else f"{one.parametric_params:.3g}"
        rows.append(
            [
                f"{one.train_gflops:.3e}",
                " ".join(f"{size} {score:.4g}" for size, score in zip(one.sizes, one.scores)),
                optimum,
                str(one.optimum_interval or "-"),
                parametric,
                one.rejected or "",
            ]
        )
    body = table(rows, ["budget (Gflops)", found.metric, "best N", "95 %", "law's best N", ""])
    head = f"block {found.block}, patch size {found.patch_size}"
    slope = table([parameter(found.exponent)], ["", "value", "95 %", ""])
    return "\n".join([head, body, slope, *([_notes(found.notes)] if found.notes else [])])


def _optimum(found: Optimum | Refusal) -> str:
    if isinstance(found, Refusal):
        return f"refused: {found.reason}"
    rows = [
        [
            f"{one.train_gflops:.3e}",
            f"{one.params:.4g}",
            str(one.params_interval or "-"),
            f"{one.images_seen:.4g}",
            str(one.images_interval or "-"),
            f"{one.score:.4g}",
        ]
        for one in found.budgets
    ]
    head = f"of {found.form}, C = k N D with k = {found.per_pair:.4g}"
    exponents = [
        [name, *parameter(one)[1:]] for name, one in (("N*", found.params_exponent), ("D*", found.images_exponent))
    ]
    return "\n".join(
        [
            head,
            table(rows, ["C", "N*", "95 %", "D*", "95 %", "score"]),
            table(exponents, ["exponent of", "value", "95 %", ""]),
        ]
    )


def _sampling(found: SamplingLaw | Refusal) -> str:
    if isinstance(found, Refusal):
        return f"refused: {found.reason}"
    rows = [parameter(found.amplitude), parameter(found.exponent)]
    cells = [
        [
            f"{one.block} {one.cell}",
            " ".join(f"{steps}:{score:.4g}" for steps, score in zip(one.steps, one.scores)),
            parameter(one.base)[1],
            parameter(one.base)[2],
        ]
        for one in found.cells
    ]
    lines = [found.equation, table(rows, ["", "value", "95 %", ""]), ""]
    lines += [table(cells, ["cell", f"steps:{found.metric}", "base", "95 %"])]
    lines += [one.said for one in found.buy_back]
    return "\n".join([*lines, *([_notes(found.notes)] if found.notes else [])])


def advice_text(found: Advice, top: int) -> str:
    """What to drop and what to train next."""
    above = [[one.cell, f"{one.ratio:.3f}", str(one.interval), one.said] for one in (*found.hopeless, *found.undecided)]
    heads = ["cell", "times the frontier", "95 %", "where"]
    count = len(found.hopeless)
    lines = [
        _section("Cannot reach the frontier", table(above[:count], heads) if count else "none beyond its interval"),
        _section("Above the frontier, not beyond the interval", table(above[count:], heads) if above[count:] else ""),
    ]
    rows = [
        [
            str(place),
            one.kind,
            one.cell,
            f"{one.step:,}",
            f"{one.cost_gflops:.3e}",
            f"{one.sd_before:.2%} -> {one.sd_after:.2%}",
            f"{one.reduction_per_gflop:.2e}",
        ]
        for place, one in enumerate(found.candidates[:top], 1)
    ]
    heads = ["", "run", "cell", "step", "cost (Gflops)", "sd of the forecast", "variance off per Gflop"]
    body = table(rows, heads) if rows else "no candidate"
    lines.append(_section(f"Next run for the forecast of {found.target}, form {found.form}", body))
    if found.largest is not None:
        lines.append(
            f"most off at any cost: {found.largest.kind} {found.largest.cell} (to {found.largest.sd_after:.2%})"
        )
    lines += [f"form: {found.form_reason}", _notes(found.notes)]
    return "\n\n".join(line for line in lines if line)


def forecast_rows(forecast: Forecast) -> list[Row]:
    """The forecast's cells as rows of a table for reading."""
    errors = {law.block: law for law in forecast.laws}
    return [
        {
            "cell": one.cell,
            "step": one.step,
            "train_gflops": one.train_gflops,
            forecast.metric: one.score,
            "prediction_95": "-" if one.prediction is None else str(one.prediction),
            "law_95": "-" if one.confidence is None else str(one.confidence),
            "form": errors[one.block].form if one.block in errors else None,
            "forward_rms": _error(errors[one.block].rms_error) if one.block in errors else "-",
            "said": one.said,
        }
        for one in forecast.cells
    ]


def _error(error: float | None) -> str:
    return "unknown" if error is None else f"{error:.1%}"


def scored_rows(scored: list[ScoredForecast]) -> list[Row]:
    """Scored cells as rows of a table for reading."""
    return [
        {
            "frozen": one.created[:10] + (" (retrospective)" if one.retrospective else ""),
            "cell": cell.cell,
            "step": cell.step,
            "forecast": cell.forecast,
            "measured": cell.measured,
            "error": f"{cell.error:+.1%}",
            "prediction_95": str(cell.prediction),
            "inside": "yes" if cell.inside else "no",
            "forward_error": _error(cell.forward_error),
        }
        for one in scored
        for cell in one.cells
    ]
