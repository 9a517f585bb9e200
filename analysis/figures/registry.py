"""All figures by name, and drawing them: PDF and PNG with the same bytes for the same rows, and a sidecar beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib

from analysis.axes import Axis, axis_of
from analysis.figures.block_design import block_design, block_design_grid
from analysis.figures.bubbles import bubbles
from analysis.figures.by import by_field
from analysis.figures.compute import gflops, sampling_compute, training_compute
from analysis.figures.drawing import Drawing, Skipped
from analysis.figures.laws import forecast, isoflops, pareto, sampling
from analysis.figures.loss import training_loss
from analysis.figures.quality import metrics
from analysis.figures.samples import blocks_by_sizes, sizes_by_patches
from analysis.figures.saving import save
from analysis.figures.scaling import scaling
from analysis.provenance import Made, code_digest, write_sidecar
from analysis.results import StudyResults
from analysis.style import STYLES, Style
from dit.errors import UserError
from dit.store.paths import refuse_links

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
    "fig12": FigureKind("Every metric on record against training compute and Gflops", metrics),
    "fig13": FigureKind("Training loss", training_loss),
    "frontier": FigureKind("Frontier of score against training compute", pareto),
    "isoflop": FigureKind("Score against parameters at fixed training compute", isoflops),
    "forecast": FigureKind("The law in compute with bands, and its predictions for held-out sizes", forecast),
    "sampling": FigureKind("What sampling steps buy, for each cell and as one law", sampling),
    "by": FigureKind("Scores by a field of the runs, for each cell", by_field),
}


@dataclass(frozen=True)
class Outcome:
    """What became of one figure: the files written, or the reason why the study does not carry it."""

    name: str
    files: tuple[Path, ...] = ()
    skipped: str | None = None


def draw_all(
    study: StudyResults,
    out: Path,
    only: list[str] | None = None,
    style: str = "paper",
    where: str | None = None,
    by: str | None = None,
) -> Iterator[Outcome]:
    """Draw the figures (all, or those named) into folder `out`, one outcome each as it is done.

    Args:
        style: one of `analysis.style.STYLES`.
        where: draw the rows for which this expression holds; the sidecars keep it.
        by: a field of the runs (by itself, the one in which runs of a cell differ): one figure of it, and the others for each of its values
            in a folder of its own.

    Raises:
        UserError: for an unknown figure or style, an expression that is none, or if `out` is a file.
    """
    names = known(only)
    if style not in STYLES:
        raise UserError(f"unknown style '{style}': expected one of {', '.join(STYLES)}")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: expected a folder for the figures, choose another --out")
    filtered = replace(study.where(where), by=by)
    axis = axis_of(filtered)
    for folder, part, chosen, here in parts_of(filtered, axis, out, where):
        refuse_links(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            if name in here:
                outcome = _draw_one(part, folder, name, STYLES[style], chosen)
                yield replace(outcome, name=str((folder / name).relative_to(out)))


def parts_of(
    study: StudyResults, axis: Axis | None, out: Path, where: str | None
) -> Iterator[tuple[Path, StudyResults, str | None, list[str]]]:
    """The folders that figures go to, each with its rows, their filter, and the figures: `out`, and one for each value of the axis."""
    rest = [name for name in FIGURES if name != "by"]
    yield out, study, where, ["by"] if axis else rest
    if axis is None:
        return
    for value, part in axis.split().items():
        condition = axis.condition(value)
        yield out / axis.slug(value), replace(part, by=None), f"({where}) and {condition}" if where else condition, rest


def known(only: list[str] | None) -> list[str]:
    """The names of all figures, or those given.

    Raises:
        UserError: for an unknown one.
    """
    for name in only or ():
        if name not in FIGURES:
            raise UserError(f"unknown figure '{name}': expected one of {', '.join(FIGURES)}")
    return list(FIGURES) if only is None else only


def drawn(study: StudyResults, name: str, style: Style) -> Drawing:
    """The figure, in memory.

    Raises:
        Skipped: if the study does not carry it.
    """
    with matplotlib.rc_context(style.rc):
        return FIGURES[name].draw(study)


def _draw_one(study: StudyResults, out: Path, name: str, style: Style, where: str | None) -> Outcome:
    with matplotlib.rc_context(style.rc):
        try:
            drawing = FIGURES[name].draw(study)
        except Skipped as reason:
            return Outcome(name, skipped=str(reason))
        for kind in ("pdf", "png", "json"):
            refuse_links(out / f"{name}.{kind}")
        files = save(drawing.figure, out, name, style.dpi)
    sidecar = out / f"{name}.json"
    made = Made(name, FIGURES[name].caption, style.name, where, code_of(name), files)
    write_sidecar(sidecar, study, made, drawing.rows, drawing.metric, drawing.extra)
    return Outcome(name, (*files, sidecar))


def code_of(name: str) -> str:
    """The hash of the code that draws and saves the figure (see `analysis.provenance.code_digest`)."""
    return code_digest(FIGURES[name].draw.__module__, save.__module__)
