"""Fig. 7: samples of all cells from the same noise and the same labels: sizes × patch sizes, and blocks × sizes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.comparable import at_common_step
from analysis.figures.drawing import Drawing, Scores, Skipped, foot, new_figure, scores
from analysis.figures.scaling import scaling_rows
from analysis.frames import Frame
from analysis.results import StudyResults
from analysis.seeds import require_one_variant
from analysis.style import FAINT, MUTED
from dit.design.blocks import block_label, in_order
from dit.errors import UserError
from dit.store.arrays import read_arrays

_SMALL = 64  # pixels: below, a cell shows ten images, else four


@dataclass(frozen=True)
class Shown:
    """One cell's samples side by side: (H, W) or (H, W, C) uint8."""

    run: str
    mosaic: np.ndarray


@dataclass(frozen=True)
class Sheet:
    """Samples of many cells: `cells` in rows `names` and columns `heads`, None where there are none; `paths` by run."""

    what: str
    names: list[str]
    heads: list[str]
    cells: list[list[Shown | None]]
    labels: str
    step: int
    small: bool
    rows: Frame
    paths: dict[str, Path]
    scores: Scores


def sizes_by_patches(study: StudyResults) -> Drawing:
    """A row for each size, a column for each patch size, of the scaling figures' block (Fig. 7)."""
    return _draw(sizes_by_patches_sheet(study))


def blocks_by_sizes(study: StudyResults) -> Drawing:
    """A row for each block, a column for each size, at the smallest patch size that has several blocks."""
    return _draw(blocks_by_sizes_sheet(study))


def sizes_by_patches_sheet(study: StudyResults) -> Sheet:
    """What `sizes_by_patches` draws.

    Raises:
        Skipped: if no samples are on record.
        UserError: if two runs were sampled with different labels.
    """
    shown = _sampled(study)
    block, rows = scaling_rows(shown)
    sizes = [size for size in study.sizes if size in set(rows["size"])]
    patches = [patch for patch in study.patches if patch in set(rows["patch_size"])]
    keyed = {(row["size"], row["patch_size"]): row for _, row in rows.iloc[::-1].iterrows()}
    grid = [[keyed.get((size, patch)) for patch in patches] for size in sizes]
    return _sheet(study, shown, grid, sizes, [f"Patch size {patch}" for patch in patches], block_label(block))


def blocks_by_sizes_sheet(study: StudyResults) -> Sheet:
    """What `blocks_by_sizes` draws.

    Raises:
        Skipped: if no patch size has samples of two blocks.
        UserError: if two runs were sampled with different labels.
    """
    shown = _sampled(study)
    several = shown.rows.groupby("patch_size")["block"].nunique()
    several = several[several > 1]
    if several.empty:
        raise Skipped("no patch size has samples of two block designs")
    patch = int(several.index.min())
    rows = shown.rows[shown.rows["patch_size"] == patch]
    blocks = in_order(rows["block"])
    sizes = [size for size in study.sizes if size in set(rows["size"])]
    keyed = {(row["block"], row["size"]): row for _, row in rows.iloc[::-1].iterrows()}
    grid = [[keyed.get((block, size)) for size in sizes] for block in blocks]
    names, heads = [block_label(block) for block in blocks], [f"Size {size}" for size in sizes]
    return _sheet(study, shown, grid, names, heads, f"Patch size {patch}")


def _sampled(study: StudyResults) -> Scores:
    """The scored rows with samples on record, after the last step that all share."""
    if not study.samples:
        raise Skipped("no samples are on record")
    shown = scores(study)
    kept = [key in study.samples for key in zip(shown.rows["run"], shown.rows["step"], shown.rows["protocol"])]
    rows = shown.rows[kept]
    if rows.empty:
        raise Skipped("no samples are on record under the main protocol")
    require_one_variant(rows)
    return shown.of(at_common_step(rows))


def _images(path: Path) -> tuple[np.ndarray, np.ndarray]:
    found = read_arrays(path, ("images", "labels"))
    images, labels = (found.get(name, np.empty(0)) for name in ("images", "labels"))
    if images.dtype != np.uint8 or images.ndim != 4 or labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise UserError(f"{path} holds no samples with their labels: delete it, or restore it from a copy")
    return images, labels


def _sheet(
    study: StudyResults, shown: Scores, grid: list[list[Any]], names: list[str], heads: list[str], what: str
) -> Sheet:
    present = [row for line in grid for row in line if row is not None]
    paths = {str(row["run"]): study.samples[row["run"], row["step"], row["protocol"]] for row in present}
    images, first_labels = _images(paths[str(present[0]["run"])])
    chosen, across = _choose(first_labels, images.shape[1])

    def one(row: Any) -> Shown | None:
        if row is None:
            return None
        images, labels = _images(paths[str(row["run"])])
        if not np.array_equal(labels[chosen], first_labels[chosen]):
            raise UserError(
                f"samples of {row['run']} have other labels than those of {present[0]['run']}: expected the same noise and "
                "labels in every run; sample them again under one protocol"
            )
        return Shown(str(row["run"]), _mosaic(images[chosen], across))

    return Sheet(
        what=what,
        names=names,
        heads=heads,
        cells=[[one(row) for row in line] for line in grid],
        labels=", ".join(str(label) for label in first_labels[chosen]),
        step=int(present[0]["step"]),
        small=images.shape[1] <= _SMALL,
        rows=pd.DataFrame(present),
        paths=paths,
        scores=shown,
    )


def _draw(sheet: Sheet) -> Drawing:
    height, width = next(one for line in sheet.cells for one in line if one is not None).mosaic.shape[:2]
    room = 6.3 / len(sheet.heads) * height / width
    figure, panels = new_figure(0.5 + len(sheet.names) * (room + 0.06), len(sheet.names), len(sheet.heads))
    for line, row_panels, name in zip(sheet.cells, panels, sheet.names):
        for one, axes in zip(line, row_panels):
            if one is None:
                _blank(axes, height, width)
            else:
                axes.imshow(one.mosaic, interpolation="nearest", cmap="gray", vmin=0, vmax=255)
                _bare(axes)
        row_panels[0].set_ylabel(name.replace("-", "-\n"), fontweight="bold")
    for axes, head in zip(panels[0], sheet.heads):
        axes.set_title(head)
    foot(
        figure,
        f"{sheet.what}. Same noise and labels ({sheet.labels}) in every panel, after {sheet.step:,} steps. {sheet.scores.foot}",
    )
    files = {run: hashlib.sha256(path.read_bytes()).hexdigest() for run, path in sorted(sheet.paths.items())}
    return Drawing(figure, sheet.rows, sheet.scores.metric, {"samples_sha256": files})


def _choose(labels: np.ndarray, side: int) -> tuple[list[int], int]:
    """Indices of the samples to show, each label once as far as possible, by label, and how many stand side by side."""
    count, across = (10, 5) if side <= _SMALL else (4, 2)
    firsts = np.unique(labels, return_index=True)[1].tolist()
    rest = [index for index in range(len(labels)) if index not in set(firsts)]
    chosen = sorted([*firsts, *rest][:count], key=lambda index: (labels[index], index))
    return chosen, min(across, len(chosen))


def _mosaic(images: np.ndarray, across: int) -> np.ndarray:
    """(n, H, W, C) uint8 images side by side, `across` in a row, with white gaps; grey images lose the channel axis."""
    n, height, width, channels = images.shape
    gap = max(1, height // 16)
    down = -(-n // across)
    sheet = np.full((down * (height + gap) - gap, across * (width + gap) - gap, channels), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // across * (height + gap), index % across * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet[..., 0] if channels == 1 else sheet


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _blank(axes: Axes, height: int, width: int) -> None:
    axes.imshow(np.full((height, width), 255, np.uint8), cmap="gray", vmin=0, vmax=255)
    _bare(axes)
    axes.set_facecolor(FAINT)
    axes.annotate("no samples", (0.5, 0.5), xycoords="axes fraction", ha="center", va="center", color=MUTED)
