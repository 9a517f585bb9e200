"""What the fits say, drawn: the frontier, isoFLOPs, the forecast with its bands and its held-out error, and the sampling law.

All numbers come from `analysis.fits`; what a fit refuses is skipped with the fit's own reason. One multiply-add is one flop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from analysis.figures.compute import with_several_sampling_steps
from analysis.figures.drawing import (
    Drawing,
    Scores,
    Skipped,
    fitted,
    foot,
    looks_of,
    new_figure,
    over_seeds,
    score_axis,
    scores,
    title,
)
from analysis.figures.labels import Point, label_points
from analysis.fits.fit import LawFit, NotIdentified, fit_law
from analysis.fits.frontier import frontier
from analysis.fits.isoflop import Budget, IsoFlop, isoflop
from analysis.fits.observations import Observations, main_block, observe
from analysis.fits.record import Parameter
from analysis.fits.sampling import CellSampling, SamplingLaw, sampling_law
from analysis.fits.validation import Fold, Validation, validate
from analysis.results import StudyResults
from analysis.style import COLUMN_WIDTH, FAINT, INK, MUTED, Look, Looks, darker, pt, stroke
from dit.design.blocks import block_label

COMPUTE_LABEL = "Training compute (Gflops)"
_COMPUTE_FORMS = ("power", "power+E")
_REACH = 1.0  # decades drawn beyond the data
_AGREE = 0.1  # the band beside the diagonal: predictions within a tenth


def _observed(study: StudyResults, apart_from: tuple[str, ...] = ()) -> tuple[Scores, Observations]:
    return scores(study, apart_from), observe(study, apart_from)


def pareto(study: StudyResults) -> Drawing:
    """Every cell over training compute, and the frontier: the scores that no score of at most the same compute beats."""
    shown, observations = _observed(study)
    try:
        found = frontier(observations)
    except NotIdentified as reason:
        raise Skipped(str(reason)) from reason
    looks = looks_of(study)
    figure, [[axes]] = new_figure(3.2)
    axes.set_xscale("log")
    rows = shown.rows
    points = over_seeds(rows, ["block", "size", "patch_size", "train_gflops"], shown.metric)
    for _, one in points.groupby(["block", "size", "patch_size"]):
        axes.plot(one["train_gflops"], one["mean"], color=FAINT, linewidth=stroke(0.7), zorder=1)
    x = [one.train_gflops for one in found.points]
    y = [one.score for one in found.points]
    edge = float(points["train_gflops"].max())
    axes.plot([*x, edge], [*y, y[-1]], color=INK, linewidth=stroke(1.0), drawstyle="steps-post", zorder=2)
    cells = [(one.block, one.size, one.patch_size) for one in found.points]
    marks = []
    for place, ((block, size, patch), one) in enumerate(zip(cells, found.points)):
        look = looks.cell(size, patch)
        if one.interval is not None:
            axes.vlines(one.train_gflops, one.interval.low, one.interval.high, color=look.colour, linewidth=stroke(0.9))
        _mark(axes, one.train_gflops, one.score, look)
        name = f"{size}/{patch}" + ("" if block == main_block(observations) else f" {block_label(block)}")
        last = (block, size, patch) not in cells[place + 1 :]
        marks.append(Point(one.train_gflops, one.score, name if last else "", darker(look.colour)))
    score_axis(axes, shown, log=True)
    axes.set_xlabel(COMPUTE_LABEL)
    title(axes, "Frontier")
    said = "" if found.noise.relative_sd is None else f" Bars: 95 % intervals; {found.noise.source}."
    block = block_label(main_block(observations))
    foot(
        figure,
        f"Means over seeds. A cell is named where it is last on the frontier; block, unless named: {block}. "
        f"Grey: all cells.{said} {shown.foot}",
    )
    label_points(figure, [(axes, marks)], 5.5)
    return Drawing(figure, rows, shown.metric, {"frontier": [one.to_json() for one in found.points]})


def isoflops(study: StudyResults) -> Drawing:
    """Scores over parameters at fixed training compute, a panel for each patch size, with the minima that are not at an edge."""
    shown, observations = _observed(study)
    block = main_block(observations)
    found, reasons = [], []
    for patch in study.patches:
        try:
            found.append(isoflop(observations, block, patch))
        except NotIdentified as reason:
            reasons.append(str(reason))
    if not found:
        raise Skipped(reasons[0] if reasons else "no patch size has scores")
    many = len(found)
    figure, [panels] = new_figure(2.7, 1, many, width=COLUMN_WIDTH if many == 1 else 6.75, sharey=True)
    for axes, one in zip(panels, found):
        _isoflop_panel(axes, one)
    score_axis(panels[0], shown)
    optima = [budget for one in found for budget in one.budgets if budget.optimum_params is not None]
    rejected = sum(len(one.budgets) for one in found) - len(optima)
    known = [one for one in found if one.exponent.value is not None]
    exponents = ", ".join(f"patch {one.patch_size}: {_told(one.exponent)}" for one in known) or "not determined"
    foot(
        figure,
        f"{block_label(block)}. Each line: one training compute (Gflops beside it). Diamonds: interior minima; {rejected} of "
        f"{rejected + len(optima)} budgets have none: the best size is at an edge. N_opt ~ C^a: {exponents}. {shown.foot}",
    )
    rows = shown.rows[shown.rows["block"] == block]
    return Drawing(figure, rows, shown.metric, {"isoflops": [one.to_json() for one in found]})


def _told(exponent: Parameter) -> str:
    return f"a = {exponent.value:.2g}" + ("" if exponent.interval is None else f" ({exponent.interval})")


def _isoflop_panel(axes: Axes, found: IsoFlop) -> None:
    axes.set_xscale("log")
    computes = np.log([one.train_gflops for one in found.budgets])
    span = float(np.ptp(computes)) or 1.0
    for place, (compute, budget) in enumerate(zip(computes, found.budgets)):
        colour = colormaps["viridis_r"](0.15 + 0.8 * (compute - computes[0]) / span)
        _isoflop_curve(axes, budget, colour, labelled=place in (0, len(computes) - 1))
    axes.set_xlabel("Parameters")
    axes.margins(x=0.25)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    title(axes, f"Patch size {found.patch_size}")


def power_of_ten(value: float) -> str:
    """A number on a figure: plain where it is short, else as 2.1·10⁴."""
    if 0.01 <= value < 1e4:
        return f"{value:.2g}" if value < 100 else f"{value:.0f}"
    exponent = math.floor(math.log10(value))
    return f"${value / 10**exponent:.2g}{{\\cdot}}10^{{{exponent}}}$"


def _isoflop_curve(axes: Axes, budget: Budget, colour: tuple[float, ...], labelled: bool) -> None:
    axes.plot(budget.curve_params, budget.curve_scores, color=colour, zorder=2)
    axes.plot(budget.params, budget.scores, color=colour, marker="o", linestyle="", markersize=stroke(3), zorder=3)
    if labelled:
        text = power_of_ten(budget.train_gflops)
        axes.annotate(
            text,
            (budget.params[0], budget.scores[0]),
            (-pt(3), 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=pt(5.5),
            color=INK,
        )
    if budget.optimum_params is not None and budget.optimum_score is not None:
        if budget.optimum_interval is not None:
            ends = (budget.optimum_interval.low, budget.optimum_interval.high)
            axes.hlines(budget.optimum_score, *ends, color=colour, linewidth=stroke(0.9), zorder=3)
        axes.plot(
            [budget.optimum_params],
            [budget.optimum_score],
            color=colour,
            marker="D",
            markersize=stroke(4.5),
            markeredgecolor=INK,
            linestyle="",
            zorder=4,
        )


def forecast(study: StudyResults) -> Drawing:
    """The law in compute with confidence and prediction bands past the data (left), and what the chosen form predicts for sizes
    that were held out against what was measured (right)."""
    shown, everything = _observed(study)
    block = main_block(everything)
    observations = everything.of_block(block)
    validation = validate(observations)
    try:
        law = fit_law(observations, _compute_form(validation))
    except NotIdentified as reason:
        raise Skipped(str(reason)) from reason
    folds = [] if validation.chosen is None else list(validation.of(validation.chosen).folds)
    held_out = [fold for fold in folds if not fold.begun] or folds
    looks = looks_of(study)
    figure, [panels] = new_figure(
        2.7,
        1,
        2 if held_out else 1,
        width=6.75 if held_out else COLUMN_WIDTH,
        gridspec_kw={"width_ratios": [1.25, 1][: 1 + bool(held_out)]},
    )
    _law_panel(panels[0], law, shown, looks)
    errors, named = "", []
    if held_out:
        named = _held_out_panel(panels[1], held_out, looks, shown)
        errors = _errors(validation)
    foot(
        figure,
        f"{block_label(block)}. Left: {law.equation}, {', '.join(_value(one) for one in law.parameters)}; dark band: of the law, "
        f"light band: of one new run (95 %); dashed: beyond the data.{errors} {shown.foot}",
    )
    if named:
        label_points(figure, [(panels[1], named)], 5.5)
    rows = shown.rows[shown.rows["block"] == block]
    extra = {"law": law.to_json(), "validation": validation.to_json()}
    return Drawing(figure, rows, shown.metric, extra)


def _compute_form(validation: Validation) -> str:
    """The form in compute alone with the smaller forward error; the pure power law where there is none."""
    errors = {name: validation.of(name).rms_error for name in _COMPUTE_FORMS}
    return min(_COMPUTE_FORMS, key=lambda name: math.inf if errors[name] is None else errors[name])  # type: ignore[arg-type]


def _errors(validation: Validation) -> str:
    chosen = validation.of(str(validation.chosen))
    median = "" if chosen.median_error is None else f", median error {100 * chosen.median_error:.1f} %"
    return f" Right: {chosen.equation}, fitted to the smaller sizes alone{median}; band: ±{100 * _AGREE:.0f} %."


def _value(one: Parameter) -> str:
    if one.value is None:
        return f"{one.name} not determined"
    return f"{one.name} = {one.value:,.3g}" + (f" ({one.remark})" if one.remark else "")


def _law_panel(axes: Axes, law: LawFit, shown: Scores, looks: Looks) -> None:
    drawn = law.curve("train_gflops", reach=_REACH)
    x, y = np.array(drawn.x), np.array(drawn.y)
    kept = x >= drawn.measured[0] / 1.5
    axes.fill_between(
        x[kept],
        np.array(drawn.prediction_low)[kept],
        np.array(drawn.prediction_high)[kept],
        color=FAINT,
        alpha=0.6,
        linewidth=0,
    )
    axes.fill_between(
        x[kept],
        np.array(drawn.confidence_low)[kept],
        np.array(drawn.confidence_high)[kept],
        color=MUTED,
        alpha=0.35,
        linewidth=0,
    )
    inside = kept & (x <= drawn.measured[1])
    beyond = x >= drawn.measured[1]
    axes.plot(x[inside], y[inside], color=INK, linewidth=stroke(1.0))
    axes.plot(x[beyond], y[beyond], color=INK, linewidth=stroke(1.0), linestyle=(0, (3, 2)))
    data = law.estimate.data.rows
    for row in data.itertuples():
        look = looks.cell(str(row.size), int(row.patch_size))  # type: ignore[arg-type]
        _mark(axes, float(row.train_gflops), float(getattr(row, law.metric)), look)
    axes.set_xscale("log")
    score_axis(axes, shown, log=True)
    axes.set_xlabel(COMPUTE_LABEL)
    title(axes, "The law in compute")


def _held_out_panel(axes: Axes, folds: list[Fold], looks: Looks, shown: Scores) -> list[Point]:
    pairs = [(fold, one) for fold in folds for one in fold.held_out]
    values = [value for _, one in pairs for value in (one.measured, one.predicted)]
    ends = np.array([0.8 * min(values), 1.25 * max(values)])
    axes.fill_between(ends, ends * (1 - _AGREE), ends * (1 + _AGREE), color=FAINT, alpha=0.7, linewidth=0, zorder=0)
    axes.plot(ends, ends, color=MUTED, linewidth=stroke(0.8), zorder=1)
    named = []
    for fold, one in pairs:
        look = (
            looks.cell(fold.predicted, int(one.cell.split("/")[-1])) if "/" in one.cell else looks.size(fold.predicted)
        )
        _mark(axes, one.measured, one.predicted, look)
        named.append(Point(one.measured, one.predicted, one.cell, darker(look.colour)))
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(lambda value, _: f"{value:g}" if str(f"{value:e}")[0] in "25" else "")
    axes.set_xlabel(f"Measured {shown.label}")
    axes.set_ylabel("Predicted")
    title(axes, "Sizes held out")
    return named


def sampling(study: StudyResults) -> Drawing:
    """What sampling steps buy: each cell's scores over sampling compute with the law's curve and its floor (left), and the gain
    over sampling steps that the cells share (right)."""
    several = with_several_sampling_steps(study)
    shown, observations = _observed(several, ("sampling_steps",))
    try:
        law = sampling_law(observations)
    except NotIdentified as reason:
        raise Skipped(str(reason)) from reason
    looks = looks_of(study)
    both = law.gain is not None
    figure, [panels] = new_figure(2.7, 1, 1 + both, width=6.75 if both else COLUMN_WIDTH)
    named = [point for cell in law.cells for point in _sampled_cell(panels[0], cell, looks)]
    panels[0].set_xscale("log")
    score_axis(panels[0], shown)
    panels[0].set_xlabel("Sampling compute per image (Gflops)")
    title(panels[0], "What sampling compute buys")
    if both:
        _gain_panel(panels[1], law, looks)
    told = f"{law.equation}: {_value(law.amplitude)}, {_value(law.exponent)}"
    floor = "Dotted: a cell's score with unlimited sampling steps; grey: 95 % band. "
    notes = "".join(f"{note.text[0].upper()}{note.text[1:]}. " for note in law.notes)
    foot(figure, f"{told}. {floor}{notes}{law.said + ' ' if law.said else ''}{shown.foot}")
    label_points(figure, [(panels[0], named)], 5.5)
    return Drawing(figure, shown.rows, shown.metric, {"sampling_law": law.to_json()})


def _sampled_cell(axes: Axes, cell: CellSampling, looks: Looks) -> Iterator[Point]:
    look = looks.cell(cell.size, cell.patch_size)
    axes.plot(cell.curve.x, cell.curve.y, color=look.colour, linewidth=stroke(1.0), zorder=2)
    axes.plot(
        cell.sampling_gflops,
        cell.scores,
        color=look.colour,
        marker=look.marker,
        markeredgecolor="white",
        linestyle="",
        zorder=3,
    )
    if cell.base.value is not None:
        ends = [cell.sampling_gflops[0], cell.sampling_gflops[-1]]
        axes.plot(
            ends, [cell.base.value] * 2, color=look.colour, linestyle=(0, (1, 1.5)), linewidth=stroke(0.8), zorder=1
        )
    yield Point(cell.sampling_gflops[-1], cell.scores[-1], f"{cell.size}/{cell.patch_size}", darker(look.colour))
    for x, y in zip(cell.sampling_gflops[:-1], cell.scores[:-1]):
        yield Point(x, y)


def _mark(axes: Axes, x: float, y: float, look: Look) -> None:
    axes.plot(
        [x],
        [y],
        color=look.colour,
        marker=look.marker or "o",
        markeredgecolor="white",
        markersize=stroke(4.5),
        linestyle="",
        zorder=3,
    )


def _gain_panel(axes: Axes, law: SamplingLaw, looks: Looks) -> None:
    gain = law.gain
    assert gain is not None
    axes.fill_between(gain.x, gain.confidence_low, gain.confidence_high, color=FAINT, linewidth=0)
    axes.plot(gain.x, gain.y, color=INK, linewidth=stroke(1.0))
    for cell in law.cells:
        if cell.base.value is not None:
            look = looks.cell(cell.size, cell.patch_size)
            axes.plot(
                cell.steps,
                np.array(cell.scores) / cell.base.value,
                color=look.colour,
                marker=look.marker,
                markeredgecolor="white",
                linestyle="",
            )
    axes.axhline(1.0, color=MUTED, linewidth=stroke(0.7), linestyle=(0, (1, 1.5)))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("Sampling steps")
    axes.set_ylabel(fitted(axes, "Score / score with unlimited steps"))
    title(axes, "The law that all cells share")
