"""Fig. 5: the four block designs over training steps, at the largest cell that has several, and at every such cell."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes

from analysis.figures.drawing import (
    Drawing,
    Scores,
    Skipped,
    bar,
    curve,
    fitted,
    floor_line,
    foot,
    legend,
    looks_of,
    new_figure,
    over_seeds,
    score_axis,
    score_label,
    scores,
    spread,
    step_axis,
    title,
)
from analysis.frames import Frame
from analysis.results import StudyResults
from analysis.style import COLUMN_WIDTH, INK, MUTED, Look, Looks, pt
from dit.design.blocks import in_order


def block_design(study: StudyResults) -> Drawing:
    """Blocks at the cell with the most Gflops that has at least two (Fig. 5); one training step is drawn as a bar for each block."""
    shown = _compared(study)
    largest = shown.rows.loc[shown.rows.groupby(["size", "patch_size"])["gflops"].transform("max").idxmax()]
    size, patch = str(largest["size"]), int(largest["patch_size"])
    rows = _cell(shown.rows, size, patch)
    looks = looks_of(study)
    if rows["step"].nunique() == 1:
        figure, [[axes]] = new_figure(2.2, width=COLUMN_WIDTH)
        points = over_seeds(rows, ["block"], shown.metric)
        _bars(axes, points, looks)
        axes.set_ylabel(fitted(axes, shown.label))
        title(axes, f"{size}/{patch} after {int(rows['step'].iloc[0]):,} steps")
    else:
        figure, [[axes]] = new_figure(2.5, width=COLUMN_WIDTH)
        points = _curves(axes, rows, shown, looks)
        score_axis(axes, shown.of(rows))
        floor_line(axes, shown)
        step_axis(axes, rows["step"].max())
        title(axes, f"Block design, {size}/{patch}")
        legend(figure, [looks.block(block) for block in in_order(rows["block"])])
    seeds = spread(points)
    foot(figure, shown.foot + (f" Band or bar: {seeds}." if seeds else ""))
    return Drawing(figure, rows, shown.metric)


def block_design_grid(study: StudyResults) -> Drawing:
    """The same comparison at every cell: a row for each size, a column for each patch size."""
    shown = _compared(study)
    sizes = [size for size in study.sizes if size in set(shown.rows["size"])]
    patches = [patch for patch in study.patches if patch in set(shown.rows["patch_size"])]
    if len(sizes) * len(patches) < 2:
        raise Skipped("several block designs are on record at one cell only, which fig5 shows")
    if shown.rows["step"].nunique() == 1:
        raise Skipped("one training step is on record: a curve needs two")
    looks = looks_of(study)
    figure, panels = new_figure(0.6 + 1.15 * len(sizes), len(sizes), len(patches), sharex=True, sharey="row")
    drawn = []
    for size, line in zip(sizes, panels):
        for patch, axes in zip(patches, line):
            rows = _cell(shown.rows, size, patch)
            if not rows.empty:
                drawn.append(_curves(axes, rows, shown, looks))
            else:
                axes.annotate("no scores", (0.5, 0.5), xycoords="axes fraction", ha="center", va="center", color=MUTED)
            floor_line(axes, shown)
            title(axes, f"{size}/{patch}")
            step_axis(axes, shown.rows["step"].max(), label=size == sizes[-1])
        score_axis(line[0], shown.of(shown.rows[shown.rows["size"] == size]), log=shown.spans_decades, label=False)
    score_label(figure, shown.label)
    blocks = [looks.block(block) for block in in_order(shown.rows["block"])]
    legend(figure, blocks, floor=shown.shows_floor, seeds=spread(pd.concat(drawn)))
    foot(figure, shown.foot)
    return Drawing(figure, shown.rows, shown.metric)


def _compared(study: StudyResults) -> Scores:
    """Scores of the cells that have several blocks, at the steps at which several were scored."""
    shown = scores(study)
    rows = shown.rows
    blocks = rows.groupby(["size", "patch_size", "step"])["block"].transform("nunique")
    rows = rows[blocks > 1]
    if rows.empty:
        raise Skipped("no cell has scores of two block designs at one training step")
    return shown.of(rows)


def _cell(rows: Frame, size: str, patch: int) -> Frame:
    return rows[(rows["size"] == size) & (rows["patch_size"] == patch)]


def _bars(axes: Axes, points: Frame, looks: Looks) -> None:
    """A bar for each block with its mean over seeds above it."""
    order = in_order(points["block"])
    by_block = points.set_index("block")
    for place, block in enumerate(order):
        mean, sd = float(by_block["mean"][block]), float(by_block["sd"][block])
        axes.bar(place, mean, 0.55, color=looks.block(block).colour, zorder=2)
        if not math.isnan(sd):
            bar(axes, place, mean, sd, Look("", INK, marker=""))
        top = mean + (0.0 if math.isnan(sd) else sd)
        axes.annotate(
            f"{mean:.4g}", (place, top), (0, pt(2)), textcoords="offset points", ha="center", fontsize=pt(6.5)
        )
    axes.set_xticks(range(len(order)), [looks.block(block).label.replace("-", "-\n") for block in order])
    axes.grid(visible=False, axis="x")
    axes.set_ylim(0.0, 1.15 * by_block["mean"].max())


def _curves(axes: Axes, rows: Frame, shown: Scores, looks: Looks) -> Frame:
    points = over_seeds(rows, ["block", "step"], shown.metric)
    for block in in_order(points["block"]):
        curve(axes, points[points["block"] == block], "step", looks.block(block))
    return points
