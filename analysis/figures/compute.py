"""Figs. 8, 9 and 10: scores against model Gflops, training compute and sampling compute; one multiply-add is one flop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import protocols
from analysis.comparable import at_common_step
from analysis.figures.drawing import (
    Drawing,
    Scores,
    Skipped,
    bar,
    block_title,
    curve,
    floor_line,
    foot,
    grid_blocks,
    legend,
    looks_of,
    new_figure,
    over_seeds,
    score_axis,
    scores,
    spread,
)
from analysis.figures.labels import Point, label_points
from analysis.frames import Frame
from analysis.results import StudyResults
from analysis.style import COLUMN_WIDTH, FAINT, INK, TEXT_WIDTH, Look, Looks, darker, stroke

GFLOPS_LABEL = "Transformer Gflops (multiply-adds)"


def log_correlation(gflops: pd.Series, score: pd.Series) -> float:
    """Pearson correlation of log10(Gflops) with the score, as Fig. 8 reports it (-0.93 for the published rows)."""
    return float(np.corrcoef(np.log10(gflops.astype(float)), score.astype(float))[0, 1])


def gflops(study: StudyResults) -> Drawing:
    """Model Gflops against score at the last training step that all cells share, with the correlation; a panel for each block (Fig. 8)."""
    shown = _scaling_blocks(scores(study))
    shown = shown.of(at_common_step(shown.rows))
    panels = _panels(study, shown, "gflops", GFLOPS_LABEL)
    found = {}
    for axes, block, points in panels.parts():
        found[block] = log_correlation(points["gflops"], points["mean"])
        _correlation_panel(axes, points, panels.looks, found[block])
        axes.margins(x=0.09)
    panels.finish(shown, f"After {_step(shown)}.", log=False)
    panels.label()
    return Drawing(panels.figure, shown.rows, shown.metric, {"log_correlation": found})


def training_compute(study: StudyResults) -> Drawing:
    """Training compute against score for all cells at all training steps on record; a panel for each block (Fig. 9)."""
    shown = _scaling_blocks(scores(study))
    panels = _panels(study, shown, "train_gflops", "Training compute (Gflops)")
    for axes, _, points in panels.parts():
        _cell_curves(axes, points, "train_gflops", panels.looks)
    panels.finish(shown, "Training compute = Gflops · batch · steps · 3.")
    if len(panels.blocks) == 1:
        panels.label()
    return Drawing(panels.figure, shown.rows, shown.metric)


def sampling_compute(study: StudyResults) -> Drawing:
    """Sampling compute against score, at the sampling steps on record of each cell (Fig. 10); all else in the protocol agrees."""
    shown = scores(with_several_sampling_steps(study), apart_from=("sampling_steps",))
    shown = shown.of(at_common_step(shown.rows))
    panels = _panels(study, shown, "sampling_gflops", "Sampling compute per image (Gflops)")
    for axes, _, points in panels.parts():
        _cell_curves(axes, points, "sampling_gflops", panels.looks)
    steps = ", ".join(str(value) for value in sorted(shown.rows["sampling_steps"].unique()))
    panels.finish(shown, f"Each line: {steps} sampling steps, after {_step(shown)} of training.")
    panels.label()
    return Drawing(panels.figure, shown.rows, shown.metric)


@dataclass(frozen=True)
class _Panels:
    """A panel for each block, `x` logarithmic in all; `points` are means over seeds of every cell."""

    figure: Figure
    grid: list[list[Axes]]
    blocks: list[str]
    points: Frame
    x: str
    looks: Looks

    def parts(self) -> Iterator[tuple[Axes, str, Frame]]:
        """Each block's panel, name and points."""
        flat = [axes for line in self.grid for axes in line]
        for axes, block in zip(flat, self.blocks):
            yield axes, block, self.points[self.points["block"] == block]

    def finish(self, shown: Scores, text: str, log: bool | None = None) -> None:
        """Titles, axes, the legend where there are several panels, and the foot line."""
        for axes, block, _ in self.parts():
            block_title(axes, block)
            floor_line(axes, shown)
        for line in self.grid:
            score_axis(line[0], shown, log)
        seeds = spread(self.points)
        if len(self.blocks) > 1:
            legend(self.figure, _cell_looks(self.looks, shown.rows), floor=shown.shows_floor, seeds=seeds)
        elif seeds:
            text += f" Band or bar: {seeds}."
        foot(self.figure, f"{text} {shown.foot}")

    def label(self) -> None:
        """Name each cell beside its last point."""
        panels = []
        for axes, _, points in self.parts():
            last = points.groupby(["size", "patch_size"]).tail(1)
            cells = zip(last[self.x], last["mean"], last["size"], last["patch_size"])
            named = [
                Point(float(x), float(y), f"{size}/{patch}", darker(self.looks.size(size).colour))
                for x, y, size, patch in cells
            ]
            rest = points.drop(index=last.index)
            panels.append((axes, [*named, *(Point(float(x), float(y)) for x, y in zip(rest[self.x], rest["mean"]))]))
        label_points(self.figure, panels)


def _panels(study: StudyResults, shown: Scores, x: str, label: str) -> _Panels:
    blocks = grid_blocks(shown.rows, least=1)
    many = len(blocks) > 1
    rows, cols = ((len(blocks) + 1) // 2, 2) if many else (1, 1)
    height, width = (0.5 + 2.1 * rows, TEXT_WIDTH) if many else (2.5, COLUMN_WIDTH)
    figure, grid = new_figure(height, rows, cols, width, sharex=True, sharey=True)
    for number, axes in enumerate(axes for line in grid for axes in line):
        axes.set_visible(number < len(blocks))
        axes.set_xscale("log")
        if number + cols >= len(blocks):
            axes.set_xlabel(label)
            axes.tick_params(labelbottom=True)
    points = over_seeds(shown.rows, ["block", "size", "patch_size", x], shown.metric)
    return _Panels(figure, grid, blocks, points, x, looks_of(study))


def with_several_sampling_steps(study: StudyResults) -> StudyResults:
    """The study's rows of the runs that were scored at several numbers of sampling steps after one training step."""
    table = study.table[study.table["protocol"].notna()]
    family = protocols.families(table, study.protocols, apart_from=("sampling_steps",))
    several = table.groupby([family, "run", "step"])["sampling_steps"].transform("nunique") > 1
    if not several.any():
        raise Skipped("no model is on record at several numbers of sampling steps after one training step")
    return replace(study, table=table[several])


def _scaling_blocks(shown: Scores) -> Scores:
    """The scores of the blocks that have a grid of cells."""
    blocks = grid_blocks(shown.rows)
    if not blocks:
        raise Skipped("no block has scores of three cells: compute needs several sizes or patch sizes")
    return shown.of(shown.rows[shown.rows["block"].isin(blocks)])


def _step(shown: Scores) -> str:
    return f"{int(shown.rows['step'].iloc[0]):,} steps"


def _cell_looks(looks: Looks, rows: Frame) -> list[Look]:
    sizes = [looks.size(size) for size in looks.sizes if size in set(rows["size"])]
    return [*sizes, *(looks.patch(patch) for patch in looks.patches if patch in set(rows["patch_size"]))]


def _cell_curves(axes: Axes, points: Frame, x: str, looks: Looks) -> None:
    for (size, patch), one in points.groupby(["size", "patch_size"]):
        curve(axes, one, x, looks.cell(str(size), int(patch)))  # type: ignore[arg-type]


def _correlation_panel(axes: Axes, points: Frame, looks: Looks, correlation: float) -> None:
    x, y = np.log10(points["gflops"].astype(float)), points["mean"]
    slope, intercept = np.polyfit(x, y, 1)
    ends = np.array([x.min(), x.max()])
    axes.plot(10**ends, slope * ends + intercept, color=FAINT, linewidth=stroke(2.5), zorder=1, solid_capstyle="round")
    for point in points.itertuples():
        look = looks.cell(str(point.size), int(point.patch_size))  # type: ignore[arg-type]
        bar(axes, point.gflops, point.mean, point.sd, look)
    text = f"r = {correlation:.2f}".replace("-", "−")
    axes.set_title(text, color=INK, loc="right")
