"""What figures share: the rows of one protocol that a figure shows, curves with bands over seeds, axes, legends and the foot line.

A figure is a function from `StudyResults` to a `Drawing`; it raises `Skipped` where the study does not carry it.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from analysis import protocols
from analysis.frames import Frame
from analysis.results import StudyResults
from analysis.seeds import require_one_variant
from analysis.style import FAINT, INK, MUTED, TEXT_WIDTH, Look, Looks, page, pt, stroke
from dit.design.blocks import block_label, in_order

_FLOOR_DASH = (0, (2, 2))
_FOOT_SIZE = 5.8
_ROOM = 0.13  # of the scores' range, left free above and below them


class Skipped(Exception):
    """A figure that the study does not carry; the message is the one-line reason."""


@dataclass(frozen=True)
class Drawing:
    """A drawn figure and the rows that made it; `extra` goes into the sidecar as it is."""

    figure: Figure
    rows: Frame
    metric: str
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """Scores that may share an axis: the rows, the column that holds them, its truthful label, the floor and the foot line."""

    rows: Frame
    metric: str
    label: str
    floor: float | None
    foot: str

    @property
    def shows_floor(self) -> bool:
        """Whether the floor lies within a factor of three of the lowest score; further away it would flatten the curves."""
        return self.floor is not None and 3 * self.floor >= self.rows[self.metric].min()

    @property
    def spans_decades(self) -> bool:
        """Whether the scores span more than a factor of ten, so that a linear axis would hide the lower ones."""
        values = self.rows[self.metric]
        return bool(0 < 10 * values.min() < values.max())

    def of(self, rows: Frame) -> Scores:
        """The same scores, fewer rows."""
        return Scores(rows, self.metric, self.label, self.floor, self.foot)


def scores(study: StudyResults, apart_from: tuple[str, ...] = ()) -> Scores:
    """The study's scores under its main protocol (see `analysis.protocols.main_protocol`), failed runs left out.

    Raises:
        Skipped: if there is no score.
        UserError: if no protocol is the main one.
    """
    if study.table["protocol"].notna().sum() == 0:
        raise Skipped("no score is on record")
    rows = protocols.main_protocol(study.table, study.protocols, apart_from)
    protocol = protocols.require_one_protocol(rows, study.protocols, apart_from)
    metric = protocols.metric(protocol)
    floors = [study.floors[key] for key in rows["protocol"].unique() if key in study.floors]
    floor = min(floors, default=None)
    said = "" if floor is None else f" Floor (real vs. real): {floor:.3g}."
    foot = f"Study “{study.name}”. {protocols.describe(protocol)}. One multiply-add is one flop.{said}"
    return Scores(rows[rows[metric].notna()], metric, protocols.metric_label(protocol), floor, foot)


def over_seeds(rows: Frame, by: list[str], metric: str, apart: tuple[str, ...] = ()) -> Frame:
    """Mean, standard deviation and number of seeds for each group, in order of `by`; runs that differ in a field of `apart` are told apart.

    Raises:
        UserError: if runs of one cell differ in more than their seed.
    """
    require_one_variant(rows, apart)
    grouped = rows.groupby([*by, *apart], sort=True, dropna=False)[metric]
    return grouped.agg(mean="mean", sd="std", n="count").reset_index()


def grid_blocks(rows: Frame, least: int = 3) -> list[str]:
    """The blocks with at least `least` cells, in the order of the configuration."""
    cells = rows.drop_duplicates(["block", "size", "patch_size"]).groupby("block").size()
    return [block for block in in_order(cells.index) if cells[block] >= least]


def empty_figure(height: float, width: float = TEXT_WIDTH) -> Figure:
    """A figure without panels, `width` × `height` inches at the paper's size, laid out so that nothing overlaps."""
    return Figure(
        figsize=(page() * width, page() * height),
        layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.03, hspace=0.04),
    )


def new_figure(
    height: float, rows: int = 1, cols: int = 1, width: float = TEXT_WIDTH, **options: Any
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of `rows` × `cols` panels, as `empty_figure` makes it."""
    figure = empty_figure(height, width)
    return figure, figure.subplots(rows, cols, squeeze=False, **options).tolist()


def curve(axes: Axes, points: Frame, x: str, look: Look) -> None:
    """A line through the means over seeds, with a band of one standard deviation where there are seeds."""
    at, mean = points[x].astype(float).to_numpy(), points["mean"].to_numpy()
    axes.plot(
        at,
        mean,
        color=look.colour,
        linestyle=look.dash,
        marker=look.marker,
        markeredgecolor="white",
        zorder=3,
    )
    if (points["n"] > 1).any():
        spread = points["sd"].fillna(0.0).to_numpy()
        axes.fill_between(at, mean - spread, mean + spread, color=look.colour, alpha=0.18, linewidth=0, zorder=2)


def floor_line(axes: Axes, scores: Scores) -> None:
    """The floor as a thin line, where it is near enough to be seen; scores at or below it cannot be told apart."""
    if scores.floor is not None and scores.shows_floor:
        axes.axhline(scores.floor, color=MUTED, linewidth=stroke(0.7), linestyle=_FLOOR_DASH, zorder=1)


def score_axis(axes: Axes, scores: Scores, log: bool | None = None, label: bool = True) -> None:
    """Label and scale the vertical axis: linear, or (unless told) logarithmic where scores span more than a factor of ten.

    A linear axis starts at zero, a distance's true end, unless all scores are so far from it that they would huddle at the top.
    """
    values = scores.rows[scores.metric]
    if scores.spans_decades if log is None else log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        low, high = float(values.min()), float(values.max())
        bottom = 0.0 if 0 <= low < 0.5 * high else low - _ROOM * (high - low)
        axes.set_ylim(bottom, high + _ROOM * (high - bottom or 1.0))
    if label:
        axes.set_ylabel(fitted(axes, scores.label))


def fitted(axes: Axes, text: str) -> str:
    """A vertical axis' label, broken into lines no longer than the panel is high."""
    grid = axes.get_subplotspec()
    rows = 1 if grid is None else grid.get_gridspec().nrows
    figure = axes.get_figure(root=True)
    height = 0.0 if figure is None else 72 * figure.get_figheight() / rows
    height -= (8 if rows == 1 else 4) * matplotlib.rcParams["font.size"]  # for what stands above and below
    characters = int(height / (0.55 * matplotlib.rcParams["axes.labelsize"]))
    parts = [text] if len(text) <= characters else text.replace(" (", "\n(").split("\n")
    return "\n".join(line for part in parts for line in textwrap.wrap(part, max(characters, 12)))


def step_axis(axes: Axes, last_step: float, label: bool = True) -> None:
    """Training steps, in thousands where they are many."""
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    if last_step >= 10_000:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:g}K"))
    if label:
        axes.set_xlabel("Training steps")


def legend(figure: Figure, looks: Iterable[Look], floor: bool = False, seeds: str = "") -> None:
    """One legend above the panels, in as few lines as its entries need; `seeds` says what a band is, as `spread` does."""
    handles = [look.handle for look in looks]
    if floor:
        handles.append(
            Line2D([], [], color=MUTED, linewidth=stroke(0.7), linestyle=_FLOOR_DASH, label="floor: real vs. real")
        )
    if seeds:
        handles.append(Line2D([], [], color=FAINT, linewidth=stroke(5), label=seeds))
    size = matplotlib.rcParams["legend.fontsize"]
    widths = sum(0.6 * size * (len(str(handle.get_label())) + 6) for handle in handles)
    lines = math.ceil(widths / (72 * figure.get_figwidth()))
    figure.legend(handles=handles, loc="outside upper center", ncols=math.ceil(len(handles) / lines))


def foot(figure: Figure, text: str) -> None:
    """The foot line: what is shown, study, protocol and convention, broken to the figure's width; small on slides too.

    Exponents are raised (`C^-a`); a dollar sign, with which matplotlib would begin a formula, stays one.
    """
    text = re.sub(r"\^(-?\w+)", r"$^{\1}$", text.replace("$", r"\$"))
    characters = int(figure.get_figwidth() * 72 / (0.56 * page() * _FOOT_SIZE))
    lines = "\n".join(textwrap.wrap(text, characters, break_on_hyphens=False))
    figure.supxlabel(lines, fontsize=page() * _FOOT_SIZE, color=MUTED, x=0.008, ha="left", linespacing=1.3)


def score_label(figure: Figure, text: str) -> None:
    """One label for the vertical axes of all panels."""
    figure.supylabel(text, fontsize=pt(7.5))


def spread(points: Frame) -> str:
    """What a band or bar over seeds is, as "± 1 s.d., n = 3 seeds"; empty where no point is a mean over several."""
    counts = sorted({int(n) for n in points["n"] if n > 1})
    if not counts:
        return ""
    return f"± 1 s.d., n = {counts[0]}{f'–{counts[-1]}' if len(counts) > 1 else ''} seeds"


def bar(axes: Axes, x: float, mean: float, sd: float, look: Look) -> None:
    """A mark at a mean over seeds with its standard deviation as a bar (none where there is one seed)."""
    axes.errorbar(
        [x], [mean], yerr=None if math.isnan(sd) else [sd], color=look.colour, marker=look.marker, linestyle="",
        markersize=stroke(5), markeredgecolor="white", elinewidth=stroke(0.9), capsize=stroke(2.2), zorder=3,
    )  # fmt: skip


def looks_of(study: StudyResults) -> Looks:
    """The looks of the study's identities."""
    return Looks(study.sizes, study.patches)


def title(axes: Axes, text: str) -> None:
    """A panel's title."""
    axes.set_title(text, color=INK, loc="left")


def block_title(axes: Axes, block: str) -> None:
    """A panel's title: the block's name."""
    title(axes, block_label(block))
