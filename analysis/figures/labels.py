"""Labels beside points: each is moved to where it covers least, and stays closer to its own point than to any other.

Every label may stand at one of 24 places around its point. Starting from the nearest free ones, labels are moved one at a time to
the place of least cost until none moves: costs are overlaps with other labels, marks, lines and the frame, distance, and doubt about
which point is meant. A label that stands off gets a thin line to its point.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from analysis.style import pt, stroke

_CHARACTER, _LINE = 0.62, 1.0  # width and height of a character, in units of the font size
_ANGLES = tuple(math.radians(angle) for angle in (45, -45, 135, -135, 0, 180, 90, -90))
_DISTANCES = (1.5, 6.0, 13.0)  # from the mark's edge, in points
_ROUNDS = 6
_Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Point:
    """A point in data coordinates, with a label or only to keep labels off; `radius` is its marker's in points (0: an ordinary mark)."""

    x: float
    y: float
    text: str = ""
    colour: str = ""
    radius: float = 0.0

    @property
    def reach(self) -> float:
        """The marker's radius."""
        return self.radius or stroke(2.5)


@dataclass(frozen=True)
class _Place:
    """A place for a label: its box, the offset of its near end from the point, and what it costs by itself."""

    box: _Box
    offset: tuple[float, float]
    align: tuple[str, str]
    distance: float
    cost: float


def label_points(figure: Figure, panels: Sequence[tuple[Axes, list[Point]]], size: float = 6.0) -> None:
    """Write each point's text beside it, panel by panel; call last, since it settles the figure's layout."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes, points in panels:
        _label_panel(axes, points, pt(size), 72 / figure.dpi)


def _label_panel(axes: Axes, points: list[Point], size: float, scale: float) -> None:
    at = [tuple(axes.transData.transform((point.x, point.y)) * scale) for point in points]
    frame = axes.get_window_extent()
    bounds = (frame.x0 * scale, frame.y0 * scale, frame.x1 * scale, frame.y1 * scale)
    strokes = _strokes(axes, scale)
    named = [index for index, point in enumerate(points) if point.text]
    places = {index: _places(index, points, at, size, bounds, strokes) for index in named}
    chosen = {index: min(places[index], key=lambda place: place.cost) for index in named}
    for _ in range(_ROUNDS):
        moved = False
        for index in named:
            others = [chosen[other].box for other in named if other != index]
            best = min(
                places[index], key=lambda place: place.cost + 3 * sum(_overlap(place.box, one) for one in others)
            )
            moved |= best is not chosen[index]
            chosen[index] = best
        if not moved:
            break
    for index, place in chosen.items():
        _write(axes, points[index], place, size)


def _places(
    index: int, points: list[Point], at: list[tuple[float, ...]], size: float, bounds: _Box, strokes: np.ndarray
) -> list[_Place]:
    point, (x, y) = points[index], at[index]
    width, height = len(point.text) * _CHARACTER * size, _LINE * size
    marks = [(a - p.reach, b - p.reach, a + p.reach, b + p.reach) for (a, b), p in zip(at, points)]
    found = []
    for far, distance in enumerate(_DISTANCES):
        for turn, angle in enumerate(_ANGLES):
            right, up = round(math.cos(angle)), round(math.sin(angle))
            reach = point.reach + distance
            dx, dy = reach * math.cos(angle), reach * math.sin(angle)
            left = x + dx - (0 if right > 0 else width if right < 0 else width / 2)
            low = y + dy - (0 if up > 0 else height if up < 0 else height / 2)
            box = (left, low, left + width, low + height)
            own = _distance(box, (x, y)) - point.reach
            nearest = min(
                (_distance(box, there) - points[other].reach for other, there in enumerate(at) if other != index),
                default=math.inf,
            )
            doubt = max(0.0, own + 2.0 - nearest)
            crossed = (
                (strokes[:, 0] > box[0] - 1)
                & (strokes[:, 0] < box[2] + 1)
                & (strokes[:, 1] > box[1] - 1)
                & (strokes[:, 1] < box[3] + 1)
            )
            cost = 3 * sum(_overlap(box, mark) for mark in marks) + 8 * _outside(box, bounds)
            cost += 2.0 * crossed.sum() + 6 * doubt + 10 * far + 0.3 * turn
            align = {1: "left", 0: "center", -1: "right"}[right], {1: "bottom", 0: "center", -1: "top"}[up]
            found.append(_Place(box, (dx, dy), align, distance, cost))
    return found


def _write(axes: Axes, point: Point, place: _Place, size: float) -> None:
    leader = dict(arrowstyle="-", color=point.colour, linewidth=stroke(0.4), shrinkA=0.5, shrinkB=point.reach)
    axes.annotate(
        point.text,
        (point.x, point.y),
        xytext=place.offset,
        textcoords="offset points",
        ha=place.align[0],
        va=place.align[1],
        fontsize=size,
        color=point.colour,
        zorder=6,
        in_layout=False,
        arrowprops=leader if place.distance > _DISTANCES[0] else None,
        path_effects=[withStroke(linewidth=stroke(1.5), foreground="white")],
    )


def _strokes(axes: Axes, scale: float) -> np.ndarray:
    """Points, one or two apart, along every curve of the panel: (n, 2) in typographic points. Lines across the whole panel are left out."""
    found = [np.zeros((0, 2))]
    for line in axes.get_lines():
        path = np.asarray(line.get_xydata(), dtype=float)
        if len(path) < 2 or line.get_linestyle() in ("", "None", "none") or line.get_transform() is not axes.transData:
            continue
        corners = axes.transData.transform(path) * scale
        for start, end in itertools.pairwise(corners):
            if np.isfinite(start).all() and np.isfinite(end).all():
                count = max(2, int(np.hypot(*(end - start)) / 2))
                found.append(start + np.linspace(0, 1, count)[:, None] * (end - start))
    return np.concatenate(found)


def _distance(box: _Box, point: tuple[float, ...]) -> float:
    """From a point to the nearest side of a box, 0 inside."""
    x, y = point
    return math.hypot(max(box[0] - x, 0.0, x - box[2]), max(box[1] - y, 0.0, y - box[3]))


def _overlap(a: _Box, b: _Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _outside(box: _Box, bounds: _Box) -> float:
    area = (box[2] - box[0]) * (box[3] - box[1])
    return area - _overlap(box, bounds)
