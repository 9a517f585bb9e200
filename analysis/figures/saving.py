"""A figure as PDF and PNG, without dates or versions in the files, so that equal rows give equal bytes."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure

from dit.store.files import whole


def save(figure: Figure, out: Path, name: str, dpi: int) -> tuple[Path, Path]:
    """Write `name`.pdf and `name`.png into folder `out`; `dpi` is the PNG's pixels per inch."""
    pdf, png = out / f"{name}.pdf", out / f"{name}.png"
    figure.set_dpi(dpi)
    with whole(png) as beside:
        FigureCanvasAgg(figure).print_png(beside, metadata={"Software": None})
    figure.set_layout_engine("none")  # the first drawing settled it
    with whole(pdf) as beside:
        FigureCanvasPdf(figure).print_pdf(beside, metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return pdf, png
