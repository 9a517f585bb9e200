"""Labels beside points without overlap: each takes the first of eight places that collides least with points and earlier labels."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

_CHARACTER, _LINE = 0.62, 1.15  # width and height of a character, in units of the font size
_PLACES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))


@dataclass(frozen=True)
class Point:
    """A point in data coordinates, with a label or only to keep labels off; `radius` is its marker's, in typographic points."""

    x: float
    y: float
    text: str = ""
    colour: str = ""
    radius: float = 3.0


def label_points(figure: Figure, panels: list[tuple[Axes, list[Point]]], size: float = 6.0) -> None:
    """Write each point's text beside it, panel by panel; call last, since it settles the figure's layout."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes, points in panels:
        _label_panel(axes, points, size, 72 / figure.dpi)


def _label_panel(axes: Axes, points: list[Point], size: float, scale: float) -> None:
    at = [axes.transData.transform((point.x, point.y)) * scale for point in points]
    frame = axes.get_window_extent()
    bounds = (frame.x0 * scale, frame.y0 * scale, frame.x1 * scale, frame.y1 * scale)
    taken = [(x - p.radius, y - p.radius, x + p.radius, y + p.radius) for (x, y), p in zip(at, points)]
    for (x, y), point in zip(at, points):
        if not point.text:
            continue
        width, height = len(point.text) * _CHARACTER * size, _LINE * size
        best = None
        for place, (right, up) in enumerate(_PLACES):
            reach = point.radius + 1.5
            diagonal = 0.75 if right and up else 1.0
            dx, dy = right * reach * diagonal, up * reach * diagonal
            left = x + dx - (0 if right > 0 else width if right < 0 else width / 2)
            low = y + dy - (0 if up > 0 else height if up < 0 else height / 2)
            box = (left, low, left + width, low + height)
            cost = sum(_overlap(box, other) for other in taken) + 4 * _outside(box, bounds) + 0.05 * place
            if best is None or cost < best[0]:
                best = (cost, box, dx, dy, right, up)
        assert best is not None
        _, box, dx, dy, right, up = best
        taken.append(box)
        axes.annotate(
            point.text,
            (point.x, point.y),
            xytext=(dx, dy),
            textcoords="offset points",
            ha={1: "left", 0: "center", -1: "right"}[right],
            va={1: "bottom", 0: "center", -1: "top"}[up],
            fontsize=size,
            color=point.colour,
            zorder=5,
            in_layout=False,
        )


_Box = tuple[float, float, float, float]


def _overlap(a: _Box, b: _Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _outside(box: _Box, bounds: _Box) -> float:
    area = (box[2] - box[0]) * (box[3] - box[1])
    return area - _overlap(box, bounds)
