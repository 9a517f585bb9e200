"""One noise and one label through every cell of a study: the paper's Fig. 7, a panel per block, rows of sizes, columns of patch sizes.

All cells of a study see the same noise, because it comes from the sampling seed alone. A cell that has no checkpoint yet stays empty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dit.data.decoding import Decoder, to_images
from dit.design.blocks import block_label, in_order
from dit.design.config import SIZES, Evaluation, RunConfig
from dit.errors import UserError
from dit.score.sampling import Sampler
from dit.store.study import RunStore, load_study
from dit.train.restore import open_checkpoint

SMALLEST_CELL = 96
"""Images smaller than this many pixels are drawn larger, by whole factors."""
MARGIN, GAP, HEAD = 56, 4, 24

Key = tuple[str, str, int]
"""Block, size, patch size."""


@dataclass(eq=False)
class Grid:
    """Images by cell with the step of each, and the cells that have none yet."""

    cells: list[Key]
    images: dict[Key, np.ndarray] = field(default_factory=dict)
    steps: dict[Key, int] = field(default_factory=dict)


def cells_of(folder: Path) -> dict[Key, RunConfig]:
    """A run of each cell of the study in `folder`: of several seeds the lowest.

    Raises:
        UserError: if there is no study.
    """
    found: dict[Key, RunConfig] = {}
    for run in sorted(load_study(folder).runs, key=lambda run: run.seed):
        found.setdefault((run.model.block, run.model.size, run.model.patch_size), run)
    return found


def draw_cells(
    folder: Path,
    cells: dict[Key, RunConfig],
    label: int,
    drawn: Evaluation,
    decoder: Decoder | None,
    report: Callable[[int, int], None],
) -> Grid:
    """The image of `drawn`'s seed and of `label` from every cell's newest averaged weights.

    Raises:
        UserError: if the study has no such label, or no cell has a checkpoint.
    """
    classes = min(run.data.num_classes for run in cells.values())
    if not 0 <= label < classes:
        raise UserError(f"label {label} is none of the study's {classes} classes: expected 0 to {classes - 1}")
    grid = Grid(list(cells))
    for number, (key, run) in enumerate(cells.items()):
        path = RunStore(folder, run).path
        if any(path.glob("ema/[0-9]*")) or any(path.glob("checkpoints/[0-9]*")):
            loaded = open_checkpoint(path)
            sampler = Sampler(loaded.apply, loaded.model, loaded.diffusion, 1, loaded.objective)
            batch = next(sampler.draw(loaded.params, drawn, 0, 1, np.array([label], np.int32)))
            grid.images[key] = to_images(batch.images, decoder)[0]
            grid.steps[key] = loaded.step or 0
        report(number + 1, len(cells))
    if not grid.images:
        raise UserError(f"no cell of {folder} has a checkpoint yet: train the study with `dit sweep` first")
    return grid


def compose(grid: Grid) -> Image.Image:
    """The picture: panels below one another in the paper's order of blocks, each cell labelled by its row and column."""
    blocks = in_order(key[0] for key in grid.cells)
    sizes = _ordered({size for _, size, _ in grid.cells})
    patches = sorted({patch for _, _, patch in grid.cells}, reverse=True)
    factor = -(-SMALLEST_CELL // max(image.shape[0] for image in grid.images.values()))
    cell = factor * max(image.shape[0] for image in grid.images.values())
    panel = 2 * HEAD + len(sizes) * (cell + GAP)
    picture = Image.new("RGB", (MARGIN + len(patches) * (cell + GAP), len(blocks) * panel), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=14)
    for b, block in enumerate(blocks):
        top = b * panel
        pen.text((MARGIN, top + HEAD // 2), block_label(block), "black", font, anchor="lm")
        for column, patch in enumerate(patches):
            left = MARGIN + column * (cell + GAP)
            pen.text((left + cell // 2, top + HEAD * 3 // 2), f"patch {patch}", "black", font, anchor="mm")
            for row, size in enumerate(sizes):
                y = top + 2 * HEAD + row * (cell + GAP)
                if column == 0:
                    pen.text((MARGIN // 2, y + cell // 2), size, "black", font, anchor="mm")
                image = grid.images.get((block, size, patch))
                if image is None:
                    missing = "not trained" if (block, size, patch) in grid.cells else ""
                    pen.rectangle((left, y, left + cell - 1, y + cell - 1), outline="lightgrey")
                    pen.text((left + cell // 2, y + cell // 2), missing, "grey", font, anchor="mm")
                else:
                    picture.paste(_enlarged(image, factor), (left, y))
    return picture


def _ordered(sizes: set[str]) -> list[str]:
    """The ladder's order, then anything else by name."""
    return [size for size in SIZES if size in sizes] + sorted(sizes - set(SIZES))


def _enlarged(image: np.ndarray, factor: int) -> Image.Image:
    pixels = np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
