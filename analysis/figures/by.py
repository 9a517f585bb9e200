"""A field of the runs against the scores: every cell at each value, means over seeds, one colour for each value."""

from __future__ import annotations

import itertools
from typing import Any

from matplotlib.figure import Figure

from analysis.axes import axis_of
from analysis.figures.compute import GFLOPS_LABEL
from analysis.figures.drawing import (
    Drawing,
    Skipped,
    bar,
    block_title,
    curve,
    floor_line,
    foot,
    legend,
    new_figure,
    score_axis,
    spread,
)
from analysis.paired import Effect, effect, is_value
from analysis.results import StudyResults
from analysis.seeds import CELL
from analysis.style import COLUMN_WIDTH, TEXT_WIDTH, Look
from dit.design.blocks import block_label, in_order
from dit.design.rows import Row

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")  # Okabe & Ito
_MARKERS = "osD^vPX"
_FEW = 8  # cells that stand side by side; more are drawn over their Gflops


def by_field(study: StudyResults) -> Drawing:
    """Scores at the common step by the study's field: side by side for each cell, or over Gflops with a panel for each block."""
    axis = axis_of(study)
    if axis is None:
        raise Skipped("runs of one cell differ in their seed alone: name a field with --by")
    found = effect(axis)
    looks = {
        value: Look(axis.name(value), _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)])
        for place, value in enumerate(axis.values)
    }
    cells = found.means.drop_duplicates([name for name in CELL if name != axis.field])
    figure = _side_by_side(found, looks) if len(cells) <= _FEW else _over_gflops(found, looks)
    legend(figure, looks.values(), floor=found.shown.shows_floor, seeds=spread(found.means))
    step = int(found.shown.rows["step"].iloc[0])
    foot(figure, f"After {step:,} steps. {' '.join(found.sentences)} {found.shown.foot}")
    return Drawing(figure, found.shown.rows, found.shown.metric, {"by": axis.field})


def _side_by_side(found: Effect, looks: dict[Any, Look]) -> Figure:
    field, points = found.axis.field, found.means.sort_values("gflops", kind="stable")
    points = points.assign(cell=[_cell_name(row, field) for row in points.to_dict("records")])
    names = list(points["cell"].unique())
    figure, [[axes]] = new_figure(2.7, width=TEXT_WIDTH if len(names) * len(looks) > _FEW else COLUMN_WIDTH)
    for place, (value, look) in enumerate(looks.items()):
        shift = 0.5 * ((place + 0.5) / len(looks) - 0.5)
        for one in points[is_value(points[field], value)].to_dict("records"):
            bar(axes, names.index(one["cell"]) + shift, one["mean"], one["sd"], look)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.grid(visible=False, axis="x")
    floor_line(axes, found.shown)
    score_axis(axes, found.shown)
    return figure


def _cell_name(row: Row, field: str) -> str:
    size = row.get("size", "")
    cell = f"{size}/{row['patch_size']}" if row.get("patch_size") else f"{size}"
    return cell if field == "block" else f"{block_label(row['block'])}\n{cell}"


def _over_gflops(found: Effect, looks: dict[Any, Look]) -> Figure:
    field, points = found.axis.field, found.means
    blocks = [None] if field == "block" else in_order(points["block"])
    rows, cols = ((len(blocks) + 1) // 2, 2) if len(blocks) > 1 else (1, 1)
    width = TEXT_WIDTH if len(blocks) > 1 else COLUMN_WIDTH
    figure, grid = new_figure(0.5 + 2.2 * rows, rows, cols, width, sharex=True, sharey=True)
    flat = [axes for line in grid for axes in line]
    for axes, block in itertools.zip_longest(flat, blocks):
        here = points if field == "block" else points[points["block"] == block]
        axes.set_visible(len(here) > 0)
        axes.set_xscale("log")
        for value, look in looks.items():
            of_value = here[is_value(here[field], value)]
            lines = [name for name in ("patch_size",) if name != field]
            for _, one in of_value.groupby(lines) if lines else [((), of_value)]:
                curve(axes, one.sort_values("gflops"), "gflops", look)
        if block is not None:
            block_title(axes, block)
        floor_line(axes, found.shown)
    for line in grid:
        score_axis(line[0], found.shown)
    for axes in grid[-1]:
        axes.set_xlabel(GFLOPS_LABEL)
    return figure
