"""Fig. 2: every model as a bubble whose area is its Gflops; with the published numbers, the other models beside the best DiT."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from analysis import published
from analysis.comparable import at_common_step
from analysis.figures.compute import GFLOPS_LABEL
from analysis.figures.drawing import (
    Drawing,
    fitted,
    floor_line,
    foot,
    new_figure,
    over_seeds,
    score_axis,
    scores,
    title,
)
from analysis.figures.labels import Point, label_points
from analysis.figures.scaling import scaling_rows
from analysis.frames import Frame, frame
from analysis.protocols import metric_label, require_one_protocol
from analysis.results import StudyResults
from analysis.style import COLUMN_WIDTH, TEXT_WIDTH, Looks, darker, page, stroke
from dit.design.blocks import block_label

_LARGEST = 420.0  # area of the largest bubble, in square points
_SMALLEST = 5.0
# Each published model is compared at its own guidance and sampler, as the paper does; features, reference and samples agree.
_OWN = ("method", "guidance", "sampler", "sampling_steps", "cfg_scale", "cfg_channels", "ema", "decoder")
_OTHERS = {"ADM": "#7A7A7A", "LDM": "#C9B458"}


@dataclass(frozen=True)
class _Bubble:
    """A model: its Gflops, score, name and colour, and the area of its bubble in square points."""

    gflops: float
    score: float
    name: str
    colour: str
    area: float

    @property
    def radius(self) -> float:
        return math.sqrt(self.area / math.pi)


def bubbles(study: StudyResults) -> Drawing:
    """Gflops against score, the area of a bubble its Gflops; beside it, for the published numbers, the paper's comparison (Fig. 2)."""
    shown = scores(study)
    block, rows = scaling_rows(shown)
    rows = at_common_step(rows)
    shown = shown.of(rows)
    compare = study.name == "paper" and study.folder is None
    figure, [panels] = new_figure(2.6, 1, 2 if compare else 1, width=TEXT_WIDTH if compare else COLUMN_WIDTH)
    points = over_seeds(rows, ["size", "patch_size", "gflops"], shown.metric).sort_values("gflops", ascending=False)
    looks = Looks(study.sizes, study.patches)
    left = [
        _Bubble(
            row.gflops, row.mean, f"{row.size}/{row.patch_size}", looks.size(row.size).colour, _area(row.gflops, points)
        )
        for row in points.itertuples()
    ]
    _draw(panels[0], left)
    floor_line(panels[0], shown)
    score_axis(panels[0], shown, log=False)
    title(panels[0], f"{block_label(block)} after {int(rows['step'].iloc[0]):,} steps")
    drawn = [left]
    extra, right = {}, ""
    if compare:
        others = frame(published.comparison())
        protocol = require_one_protocol(others, published.protocols(), apart_from=_OWN)
        drawn.append([_compared(row, _area(row.gflops, others), looks) for row in others.itertuples()])
        _draw(panels[1], drawn[1])
        panels[1].set_ylim(bottom=0.0)
        panels[1].set_ylabel(fitted(panels[1], metric_label(protocol)))
        title(panels[1], "Beside other models, guided, 256 × 256")
        extra["comparison"] = (
            others[["run", "gflops", "fid", "protocol", "citation"]]
            .rename(columns={"citation": "source"})
            .to_dict("records")
        )
        right = " Right: each model at its own guidance and sampler (Tables 2 and 6)."
    foot(figure, f"Area of a bubble: Gflops of one forward pass. {shown.foot}{right}")
    labels = [
        [Point(one.gflops, one.score, one.name, darker(one.colour), page() * one.radius) for one in these]
        for these in drawn
    ]
    label_points(figure, list(zip(panels, labels)))
    return Drawing(figure, rows, shown.metric, extra)


def _area(gflops: float, among: Frame) -> float:
    return max(_SMALLEST, _LARGEST * gflops / float(among["gflops"].max()))


def _compared(row: Any, area: float, looks: Looks) -> _Bubble:
    if row.study == "paper":
        return _Bubble(row.gflops, row.fid, "DiT-XL/2-G", looks.size("XL").colour, area)
    return _Bubble(row.gflops, row.fid, row.run.split(" (")[0], _OTHERS[row.run[:3]], area)


def _draw(axes: Axes, bubbles: list[_Bubble]) -> None:
    axes.set_xscale("log")
    axes.set_xlabel(GFLOPS_LABEL)
    axes.margins(0.16, 0.16)
    axes.scatter(
        [one.gflops for one in bubbles],
        [one.score for one in bubbles],
        [page() ** 2 * one.area for one in bubbles],
        [one.colour for one in bubbles],
        alpha=0.85,
        edgecolors="white",
        linewidths=stroke(0.6),
        zorder=3,
    )
