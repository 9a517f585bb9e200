"""The page: everything gathered, put into one HTML file by Jinja (which escapes whatever comes from a run), styles and scripts inside."""

from __future__ import annotations

import base64
import datetime
import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from types import MappingProxyType

import jinja2
import matplotlib
from markupsafe import Markup, escape
from matplotlib.backends.backend_agg import FigureCanvasAgg

from analysis.axes import Axis, axis_of
from analysis.figures.by import by_field
from analysis.figures.drawing import Scores, Skipped, scores
from analysis.frames import frame
from analysis.paired import Effect, effect
from analysis.report.charts import charts
from analysis.report.conclusions import NONE, fits
from analysis.report.costs import costs
from analysis.report.grids import grids
from analysis.report.origin import origin
from analysis.report.tables import cell_table, failures, protocol_table, score_table, table, written
from analysis.report.words import protocol_words, summary
from analysis.results import StudyResults, losses
from analysis.style import STYLES
from dit.duration import duration
from dit.errors import UserError
from dit.store.files import write_text
from dit.store.study import load_study

_PUBLISHED = "The numbers that the paper publishes (arXiv:2212.09748)."


def write_reports(study: StudyResults, path: Path, by: str | None = None) -> list[Path]:
    """Write a study's page to `path`; where it has an axis (`analysis.axes`), one of what the field did, and one beside it for each value.

    Raises:
        UserError: as `write_report` does, or for an unknown field, or several that `by` does not choose from.
    """
    axis = axis_of(study, by)
    if axis is None:
        return [write_report(study, path)]
    pages = {axis.name(value): path.with_name(f"{path.stem}-{axis.slug(value)}{path.suffix}") for value in axis.values}
    written = [write_report(part, page) for part, page in zip(axis.split().values(), pages.values())]
    write_text(path, render(axis.study, axis, {name: page.name for name, page in pages.items()}))
    return [path, *written]


def write_report(study: StudyResults, path: Path) -> Path:
    """Write the page of a study to `path`, whole or not at all.

    Raises:
        UserError: if `path` is a folder, or two protocols have equal claims to be the main one.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: expected a file for the report, like {path / 'report.html'}")
    write_text(path, render(study))
    return path


def render(study: StudyResults, axis: Axis | None = None, pages: Mapping[str, str] = MappingProxyType({})) -> str:
    """The page as text; with an axis, of what its field does, and `pages` has each value's own.

    Raises:
        UserError: as `write_report` does.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("analysis.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"formula": _formula, "raised": _raised}
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    shown = None if axis else _scores(study)
    found = _effect(axis) if axis else None
    logged = frame([], ["run", "step", "loss"]) if study.folder is None else losses(study.folder)
    logged = logged[logged["run"].isin(study.runs)]
    cost = costs(study, logged)
    fitted = NONE if axis else fits(study)
    script, library = _asset("report.js"), re.sub(r"\n//# sourceMappingURL=.*", "", _asset("chart.umd.min.js"))
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return environment.get_template("page.html.j2").render(
        study=study,
        doc=_reflowed(load_study(study.folder).doc) if study.folder else _PUBLISHED,
        summary=[*summary(study, shown, cost, found), *fitted.words],
        protocol=None if shown is None else protocol_words(study, shown),
        charts=[] if axis else charts(study, shown, logged),
        by=axis,
        pages=pages,
        means=None
        if found is None
        else table(found.rows, list(dict.fromkeys(name for row in found.rows for name in row))),
        figure=None if found is None else _figure(study, axis),
        cells=None if shown is None else cell_table(shown),
        scores=score_table(study),
        protocols=protocol_table(study),
        grids=[] if axis else grids(study),
        fits=fitted,
        costs=cost,
        failures=failures(study),
        origin=origin(study, created),
        duration=duration,
        written=written,
        hashes=Markup(" ".join(map(_policy, (library, script)))),
        style=Markup(_asset("report.css")),
        script=Markup(script),
        library=Markup(library),
    )


def _effect(axis: Axis) -> Effect | None:
    try:
        return effect(axis)
    except Skipped:
        return None


def _figure(study: StudyResults, axis: Axis | None) -> str:
    """The figure by the field as a data URI."""
    file = io.BytesIO()
    with matplotlib.rc_context(STYLES["paper"].rc):
        drawing = by_field(replace(study, by=axis.field if axis else None))
        drawing.figure.set_dpi(200)
        FigureCanvasAgg(drawing.figure).print_png(file, metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _scores(study: StudyResults) -> Scores | None:
    try:
        return scores(study)
    except Skipped:
        return None


def _asset(name: str) -> str:
    return (resources.files("analysis.report") / "assets" / name).read_text(encoding="utf8")


def _reflowed(doc: str) -> str:
    """A docstring without the line breaks of its source file: paragraphs and lines that begin as `Question:` stay apart."""
    return re.sub(r"(?<!\n)\n(?!\n|[A-Z]\w+: )", " ", doc)


def _raised(text: str) -> Markup:
    """A sentence with the exponents of its formulas raised."""
    return Markup(re.sub(r"\^(-?\w+)", lambda found: f"<sup>{found[1].replace('-', '−')}</sup>", str(escape(text))))


def _formula(text: str) -> Markup:
    """A formula in plain text with its exponents raised and its indices lowered."""
    return Markup(re.sub(r"_(\w+)", r"<sub>\1</sub>", str(_raised(text))))


def _policy(script: str) -> str:
    """A script's source expression for the page's content security policy: only these two run, whatever else is in the page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
