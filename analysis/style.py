"""How figures look: one identity, one look, in every figure.

A size is a colour (a sequential ramp, dark is large), a patch size is a marker and a dash (by rank, so that 8/4/2 on latents looks
like 4/2/1 on digits: the same growth in tokens), a block is a colour of its own from the Okabe-Ito set. The ramp and the set stay
apart for the common kinds of colour blindness, and in grey by lightness, marker or dash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
from matplotlib.colors import to_hex, to_rgb
from matplotlib.lines import Line2D

from dit.design.blocks import BLOCKS, Block, block_label
from dit.design.parts import latest, names

Dash = Literal["-", "--", "-.", ":"] | tuple[float, Sequence[float]]

INK = "#222222"
MUTED = "#6B6B6B"
FAINT = "#DDDDDD"
TEXT_WIDTH = 6.75  # inches, the paper's two columns
COLUMN_WIDTH = 3.25  # inches, one of them
_TEXT_SIZE = 7.0  # points, at the paper's size

_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "axes.titleweight": "bold",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E9E9E9",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.handlelength": 2.0,
    "legend.columnspacing": 1.2,
    "pdf.fonttype": 42,
    "figure.dpi": 100,
}
# In points at the paper's size; a style magnifies text by one factor, lines and marks by another.
_TEXT = {
    **{"font.size": _TEXT_SIZE, "axes.labelsize": 7.5, "axes.titlesize": 7.5, "axes.titlepad": 4.0},
    **{"xtick.labelsize": 6.5, "ytick.labelsize": 6.5, "legend.fontsize": 6.5},
}
_STROKES = {
    **{"axes.linewidth": 0.6, "grid.linewidth": 0.5},
    **{"lines.linewidth": 1.2, "lines.markersize": 3.6, "lines.markeredgewidth": 0.5},
    **{f"{axis}tick.major.size": 2.5 for axis in "xy"},
    **{f"{axis}tick.minor.size": 1.5 for axis in "xy"},
    **{f"{axis}tick.major.width": 0.6 for axis in "xy"},
    **{f"{axis}tick.minor.width": 0.4 for axis in "xy"},
}


@dataclass(frozen=True)
class Style:
    """What a figure is made for: factors on the paper's sizes (width and height, text, lines and marks), and pixels per inch."""

    name: str
    page: float
    text: float
    strokes: float
    dpi: int

    @property
    def rc(self) -> dict[Any, Any]:
        """Settings for `matplotlib.rc_context`."""
        return {
            **_RC,
            **{key: value * self.text for key, value in _TEXT.items()},
            **{key: value * self.strokes for key, value in _STROKES.items()},
            "figure.figsize": (TEXT_WIDTH * self.page, TEXT_WIDTH * self.page),
        }


STYLES = {
    "paper": Style("paper", 1.0, 1.0, 1.0, 300),
    "talk": Style("talk", 1.7, 2.15, 2.2, 160),  # 11.5 inches across a slide, text of 15 points
}


def pt(size: float) -> float:
    """A text size (points at the paper's size) in the style that is in force."""
    return size * matplotlib.rcParams["font.size"] / _TEXT_SIZE


def page() -> float:
    """The factor on widths and heights of the style that is in force."""
    return matplotlib.rcParams["figure.figsize"][0] / TEXT_WIDTH


def stroke(width: float) -> float:
    """A line's width or a mark's size (points at the paper's size) in the style that is in force."""
    return width * matplotlib.rcParams["lines.linewidth"] / _STROKES["lines.linewidth"]


_SIZE_COLOURS = {"S": "#8CCB4C", "B": "#22A08A", "L": "#2B6CA3", "XL": "#3B1A5E"}
_SPARE_COLOURS = ("#8C6D31", "#A55194", "#17A2B8", "#7F7F7F")
# From the largest patch (fewest tokens) to the smallest; further patch sizes repeat the last.
_PATCHES: tuple[tuple[str, Dash], ...] = (
    ("s", (0, (1, 1.2))),
    ("^", (0, (4, 1.5))),
    ("o", "-"),
    ("D", (0, (3, 1, 1, 1))),
    ("P", (0, (6, 1))),
)


@dataclass(frozen=True)
class Look:
    """Colour, marker and dash of a line, and the name in a legend."""

    label: str
    colour: str
    marker: str = "o"
    dash: Dash = "-"

    @property
    def handle(self) -> Line2D:
        """An entry for a legend."""
        return Line2D(
            [],
            [],
            color=self.colour,
            marker=self.marker,
            linestyle=self.dash,
            label=self.label,
            markeredgecolor="white",
        )


@dataclass(frozen=True)
class Looks:
    """The looks of a study's identities; `sizes` and `patches` are those of the whole study, in order of growth."""

    sizes: tuple[str, ...]
    patches: tuple[int, ...]

    def size(self, size: str) -> Look:
        """A size of any patch size."""
        spare = [name for name in self.sizes if name not in _SIZE_COLOURS]
        colour = _SIZE_COLOURS.get(size) or _SPARE_COLOURS[spare.index(size) % len(_SPARE_COLOURS)]
        return Look(size, colour, marker="", dash="-")

    def patch(self, patch_size: int) -> Look:
        """A patch size of any size."""
        marker, dash = self._patch(patch_size)
        return Look(f"patch {patch_size}" if patch_size else "U-Net", MUTED, marker, dash)

    def cell(self, size: str, patch_size: int) -> Look:
        """A size with a patch size: the size's colour, the patch's marker and dash."""
        marker, dash = self._patch(patch_size)
        label = f"{size}/{patch_size}" if patch_size else size  # a U-Net has no patches
        return Look(label, self.size(size).colour, marker, dash)

    def block(self, block: str) -> Look:
        """A block."""
        part = latest(Block, block)
        own = [name for name in names(Block) if name not in BLOCKS]
        spare = _SPARE_COLOURS[own.index(block) % len(_SPARE_COLOURS)] if block in own else MUTED
        if part is None:
            return Look(block_label(block), spare, "D")
        dash = part.dash if isinstance(part.dash, str) else (part.dash[0], part.dash[1:])
        return Look(part.label, part.colour or spare, part.marker, dash)

    def _patch(self, patch_size: int) -> tuple[str, Dash]:
        return _PATCHES[min(self.patches.index(patch_size), len(_PATCHES) - 1)]


def darker(colour: str, by: float = 0.35) -> str:
    """A colour mixed with black, to be legible as text."""
    red, green, blue = to_rgb(colour)
    return to_hex((red * (1 - by), green * (1 - by), blue * (1 - by)))
