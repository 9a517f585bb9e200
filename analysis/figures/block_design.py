"""Fig. 5: the four block designs over training steps, at the largest cell that has several, and at every such cell."""

from __future__ import annotations

from matplotlib.axes import Axes

from analysis.figures.drawing import (
    Drawing,
    Scores,
    Skipped,
    curve,
    floor_line,
    foot,
    has_seeds,
    legend,
    looks_of,
    new_figure,
    over_seeds,
    score_axis,
    scores,
    step_axis,
    title,
)
from analysis.frames import Frame
from analysis.results import StudyResults
from analysis.style import INK, Looks
from dit.config import BLOCKS


def block_design(study: StudyResults) -> Drawing:
    """Blocks at the cell with the most Gflops that has at least two (Fig. 5); one training step is drawn as a bar for each block."""
    shown = _compared(study)
    largest = shown.rows.loc[shown.rows.groupby(["size", "patch_size"])["gflops"].transform("max").idxmax()]
    size, patch = str(largest["size"]), int(largest["patch_size"])
    rows = _cell(shown.rows, size, patch)
    looks = looks_of(study)
    if rows["step"].nunique() == 1:
        figure, [[axes]] = new_figure(2.3, width=3.3)
        points = over_seeds(rows, ["block"], shown.metric)
        order = [block for block in BLOCKS if block in set(points["block"])]
        means = points.set_index("block")["mean"]
        for place, block in enumerate(order):
            axes.bar(place, means[block], 0.55, color=looks.block(block).colour, zorder=2)
            axes.annotate(
                f"{means[block]:.4g}",
                (place, means[block]),
                (0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=6.5,
            )
        axes.set_xticks(range(len(order)), [looks.block(block).label for block in order])
        axes.grid(visible=False, axis="x")
        axes.set_ylim(0.0, 1.1 * means.max())
        axes.set_ylabel(shown.label)
        title(axes, f"{size}/{patch} after {int(rows['step'].iloc[0]):,} steps")
    else:
        figure, [[axes]] = new_figure(2.6, width=3.6)
        points = _curves(axes, rows, shown, looks)
        score_axis(axes, shown.of(rows))
        floor_line(axes, shown)
        step_axis(axes, rows["step"].max())
        title(axes, f"Block design, {size}/{patch}")
        handles = [looks.block(block).handle for block in BLOCKS if block in set(rows["block"])]
        axes.legend(handles=handles, loc="upper right")
        if has_seeds(points):
            axes.annotate("band: ± 1 s.d. over seeds", (0.02, 0.02), xycoords="axes fraction", fontsize=5.5, color=INK)
    foot(figure, shown.foot)
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
    seeds = False
    for size, line in zip(sizes, panels):
        for patch, axes in zip(patches, line):
            rows = _cell(shown.rows, size, patch)
            if not rows.empty:
                seeds |= has_seeds(_curves(axes, rows, shown, looks))
            floor_line(axes, shown)
            title(axes, f"{size}/{patch}")
            step_axis(axes, shown.rows["step"].max(), label=size == sizes[-1])
        score_axis(line[0], shown.of(shown.rows[shown.rows["size"] == size]), log=shown.spans_decades, label=False)
    figure.supylabel(shown.label, fontsize=7.5)
    blocks = [looks.block(block) for block in BLOCKS if block in set(shown.rows["block"])]
    legend(figure, blocks, floor=shown.shows_floor, seeds=seeds)
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


def _curves(axes: Axes, rows: Frame, shown: Scores, looks: Looks) -> Frame:
    points = over_seeds(rows, ["block", "step"], shown.metric)
    for block in BLOCKS:
        one = points[points["block"] == block]
        if not one.empty:
            curve(axes, one, "step", looks.block(block))
    return points
