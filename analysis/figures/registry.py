"""All figures by name, and drawing them: PDF and PNG with the same bytes for the same rows, and a sidecar beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure

from analysis.figures.block_design import block_design, block_design_grid
from analysis.figures.bubbles import bubbles
from analysis.figures.compute import gflops, sampling_compute, training_compute
from analysis.figures.drawing import Drawing, Skipped
from analysis.figures.loss import training_loss
from analysis.figures.samples import blocks_by_sizes, sizes_by_patches
from analysis.figures.scaling import scaling
from analysis.provenance import write_sidecar
from analysis.results import StudyResults
from analysis.style import RC
from dit.errors import UserError

PNG_DPI = 240
Draw = Callable[[StudyResults], Drawing]


@dataclass(frozen=True)
class FigureKind:
    """A figure that a study may carry: what it shows, and the function that draws it."""

    caption: str
    draw: Draw


FIGURES: dict[str, FigureKind] = {
    "fig2": FigureKind("Models as bubbles whose area is their Gflops", bubbles),
    "fig5": FigureKind("Block design over training steps at the largest cell", block_design),
    "fig5_grid": FigureKind("Block design over training steps at every cell", block_design_grid),
    "fig6": FigureKind("Scaling size and patch size over training steps", scaling),
    "fig7": FigureKind("Samples of every size and patch size from the same noise and labels", sizes_by_patches),
    "fig7_blocks": FigureKind("Samples of every block and size from the same noise and labels", blocks_by_sizes),
    "fig8": FigureKind("Gflops against score, with their correlation", gflops),
    "fig9": FigureKind("Training compute against score", training_compute),
    "fig10": FigureKind("Sampling compute against score", sampling_compute),
    "fig13": FigureKind("Training loss", training_loss),
}


@dataclass(frozen=True)
class Outcome:
    """What became of one figure: the files written, or the reason why the study does not carry it."""

    name: str
    files: tuple[Path, ...] = ()
    skipped: str | None = None


def draw_all(study: StudyResults, out: Path, only: list[str] | None = None) -> Iterator[Outcome]:
    """Draw the figures (all, or those named) into folder `out`, one outcome each as it is done.

    Raises:
        UserError: for an unknown figure, or if `out` is a file.
    """
    names = list(FIGURES) if only is None else only
    for name in names:
        if name not in FIGURES:
            raise UserError(f"unknown figure '{name}': expected one of {', '.join(FIGURES)}")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: expected a folder for the figures, choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        yield _draw_one(study, out, name)


def _draw_one(study: StudyResults, out: Path, name: str) -> Outcome:
    kind = FIGURES[name]
    with matplotlib.rc_context(RC):
        try:
            drawing = kind.draw(study)
        except Skipped as reason:
            return Outcome(name, skipped=str(reason))
        files = _save(drawing.figure, out, name)
    sidecar = out / f"{name}.json"
    write_sidecar(sidecar, study, name, kind.caption, drawing.rows, drawing.metric, drawing.extra)
    return Outcome(name, (*files, sidecar))


def _save(figure: Figure, out: Path, name: str) -> tuple[Path, Path]:
    """PDF and PNG without dates or versions, so that equal rows give equal bytes."""
    pdf, png = out / f"{name}.pdf", out / f"{name}.png"
    figure.set_dpi(PNG_DPI)
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    figure.set_layout_engine("none")  # the first drawing settled it
    FigureCanvasPdf(figure).print_pdf(pdf, metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return pdf, png
