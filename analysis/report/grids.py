"""Sample images of the page: one sheet for each cell, from the same noise and labels, as PNG data in the page itself."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from analysis.figures.drawing import Skipped
from analysis.figures.samples import Sheet, blocks_by_sizes_sheet, sizes_by_patches_sheet
from analysis.results import StudyResults


@dataclass(frozen=True)
class Grid:
    """Sheets in rows and columns. `images` holds data URIs, None where a cell has no samples; `side` is an image's side in pixels."""

    title: str
    rows: tuple[str, ...]
    heads: tuple[str, ...]
    images: tuple[tuple[tuple[str, str] | None, ...], ...]
    note: str
    small: bool


def grids(study: StudyResults) -> list[Grid]:
    """Sizes by patch sizes, and blocks by sizes, as far as samples are on record."""
    found = []
    for make in (sizes_by_patches_sheet, blocks_by_sizes_sheet):
        try:
            found.append(_grid(make(study)))
        except Skipped:
            continue
    return found


def _grid(sheet: Sheet) -> Grid:
    return Grid(
        title=sheet.what,
        rows=tuple(sheet.names),
        heads=tuple(sheet.heads),
        images=tuple(
            tuple(None if one is None else (str(one.run), _data_uri(one.mosaic)) for one in line)
            for line in sheet.cells
        ),
        note=f"Labels {sheet.labels}, the same noise in every sheet, after {sheet.step:,} steps.",
        small=sheet.small,
    )


def _data_uri(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
