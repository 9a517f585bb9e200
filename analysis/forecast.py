"""Forecasts that are frozen before a cell is trained, and scored afterwards.

A forecast is a JSON file `DIR/forecasts/<date>-<target>-<hash>.json`: dated, with the scores it was made from and their hash, the
form, intervals and the form's forward-validation error. The file's own hash is in it and in its name, so that a changed file is
found out; publish the hash to prove the date to others. The prediction interval is at least as wide as the form's forward error.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.fits.diagnostics import MAX_DECADES
from analysis.fits.fit import LOSS, LawFit, NotIdentified, Prediction, fit_law
from analysis.fits.laws import FORMS
from analysis.fits.observations import VARIABLES, Observations, observe
from analysis.fits.record import Interval, Note, Parameter, Record
from analysis.fits.validation import Validation, cell_name, validate
from analysis.provenance import figure_rows, rows_digest
from analysis.results import StudyResults
from analysis.tables import plain
from analysis.targets import Target, begun, of_cell, planned_targets, select
from dit import __version__
from dit.design.config import digest
from dit.design.rows import Row
from dit.errors import UserError
from dit.store.study import SCHEMA_VERSION, read_json, write_json

_ROW_FIELDS = (
    *("run", "block", "size", "patch_size", "image_size", "step"),
    *("params", "tokens", "images_seen", "gflops", "train_gflops"),
)


@dataclass(frozen=True)
class CellForecast(Record):
    """A cell's forecast at a training step: `score` is None where it is refused; `said` tells why, or how far past the data it lies."""

    cell: str
    run: str
    block: str
    size: str
    patch_size: int
    image_size: int
    step: int
    params: int
    tokens: int
    images_seen: int
    gflops: float
    train_gflops: float
    status: str
    score: float | None
    confidence: Interval | None
    prediction: Interval | None
    decades_beyond: float
    said: str | None


@dataclass(frozen=True)
class ForecastLaw(Record):
    """The law behind one block's forecasts. Errors are forward-chained: `median_error` of |error|, `rms_error` of log scores."""

    block: str
    form: str
    equation: str
    parameters: tuple[Parameter, ...]
    loss: str
    median_error: float | None
    rms_error: float | None
    max_error: float | None
    validation: Validation
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class Forecast(Record):
    """A frozen forecast. `inputs` are the scores it was made from, `inputs_sha256` their hash, `sha256` that of all the rest."""

    schema_version: int
    created: str
    dit_version: str
    study: str
    target: str
    retrospective: bool
    metric: str
    label: str
    protocol: str
    laws: tuple[ForecastLaw, ...]
    cells: tuple[CellForecast, ...]
    inputs: tuple[Row, ...]
    inputs_sha256: str
    sha256: str = ""

    @property
    def file_name(self) -> str:
        """Date, target and the first digits of the hash."""
        slug = re.sub(r"[^A-Za-z0-9.]+", "_", self.target).strip("_")[:40]
        return f"{self.created[:10]}-{slug}-{self.sha256[:12]}.json"


@dataclass(frozen=True)
class ScoredCell(Record):
    """Forecast against measurement (geometric mean over seeds); `error` is forecast / measured - 1, `forward_error` what its law's forward
    validation had promised (median)."""

    cell: str
    block: str
    step: int
    forecast: float
    measured: float
    error: float
    inside: bool
    prediction: Interval
    forward_error: float | None


@dataclass(frozen=True)
class ScoredForecast(Record):
    """One forecast file scored: `trouble` if it no longer has its hash or its inputs changed; `pending` are cells without a score yet."""

    path: str
    created: str
    target: str
    retrospective: bool
    trouble: str | None
    cells: tuple[ScoredCell, ...]
    pending: tuple[str, ...]
    median_error: float | None


def freeze(
    study: StudyResults,
    target: str,
    *,
    retrospective: bool = False,
    form: str | None = None,
    loss: str = LOSS,
    force: bool = False,
) -> Forecast:
    """Forecast the cells that `target` names, from the study's scores without theirs.

    Args:
        retrospective: allow cells that have that score already, and say so in the forecast; their scores do not enter the fit.
        form: one of `laws.FORMS` instead of the one that forward validation chooses.
        force: print forecasts further than `MAX_DECADES` past the data.

    Raises:
        UserError: for a cell that has its score already, a target that names no cell, or no form that can be validated or fitted.
    """
    observations = observe(study)
    cells = select(planned_targets(study, observations), target)
    everything, siblings = observations, ""
    if not retrospective:
        _refuse_scored(observations, [(one, step) for one in cells for step in one.steps], every=True)
    else:
        known = np.any([of_cell(observations, one.cell) for one in cells], axis=0)
        observations = observations.at(~known)
        siblings = _siblings(observations, cells)
    laws, found, used, reasons = [], [], np.zeros(len(observations), dtype=bool), []
    for block in dict.fromkeys(one.cell[0] for one in cells):
        mine = (observations.rows["block"] == block).to_numpy()
        ours = [one for one in cells if one.cell[0] == block]
        try:
            fit, law = _law(observations.at(mine), block, form, loss)
        except UserError as reason:
            reasons.append(reason)
            found += [_record(one, one.steps[-1], None, 0.0, f"refused: {reason}") for one in ours]
            continue
        used |= mine
        laws.append(law)
        found += [_forecast_cell(one, fit, law, force, siblings) for one in ours]
    if not laws:
        raise reasons[0]
    if not retrospective:
        places = {one.cell: one for one in cells}
        _refuse_scored(
            everything,
            [(places[one.block, one.size, one.patch_size, one.image_size], one.step) for one in found],
        )
    inputs = figure_rows(observations.rows[used], observations.metric)
    made = Forecast(
        schema_version=SCHEMA_VERSION,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        dit_version=__version__,
        study=study.name,
        target=target,
        retrospective=retrospective,
        metric=observations.metric,
        label=observations.label,
        protocol=str(observations.rows["protocol"].iloc[0]),
        laws=tuple(laws),
        cells=tuple(found),
        inputs=tuple(inputs),
        inputs_sha256=rows_digest(inputs),
    )
    return replace(made, sha256=content_hash(made.to_json()))


def _siblings(observations: Observations, cells: list[Target]) -> str:
    """Said where other cells of a forecast size, whose scores are known, enter its fit and its choice of form."""
    sizes, rows = {one.cell[:2] for one in cells}, observations.rows
    kept = [pair in sizes for pair in zip(rows["block"], rows["size"])]
    names = list(dict.fromkeys(cell_name(row) for row in rows[kept].itertuples()))
    if not names:
        return ""
    whole = ", ".join(dict.fromkeys(str(size) for _, size in sorted(sizes)))
    return f"knows {', '.join(names)}, which --for {whole} would leave out of the fit and of the choice of form"


def content_hash(value: dict[str, Any]) -> str:
    """SHA-256 (64 digits) of a forecast as JSON, its own hash left out."""
    return digest({name: one for name, one in value.items() if name != "sha256"}, length=64)


def save(forecast: Forecast, folder: Path) -> Path:
    """Write a forecast; one that is there is never overwritten.

    Raises:
        UserError: if the file exists.
    """
    path = folder / forecast.file_name
    if path.exists():
        raise UserError(f"{path} exists: a frozen forecast is not overwritten")
    write_json(path, forecast.to_json())
    return path


def _refuse_scored(observations: Observations, places: list[tuple[Target, int]], every: bool = False) -> None:
    """Refuse cells that have their score at a step; with `every`, only cells that have all of theirs."""
    scored: dict[tuple, dict[int, float]] = {}
    for one, step in places:
        rows = observations.rows[of_cell(observations, one.cell)]
        scored.setdefault(one.cell, {})[step] = rows.loc[rows["step"] == step, observations.metric].mean()
    for one, step in places:
        values, known = scored[one.cell], np.isfinite(list(scored[one.cell].values()))
        if np.isfinite(values[step]) and (known.all() or not every):
            raise UserError(
                f"{one.name} already has {observations.metric} {values[step]:.4g} at step {step}: a forecast is frozen "
                "before the score is known; --retrospective makes one that says it was not"
            )


def _law(observations: Observations, block: str, form: str | None, loss: str) -> tuple[LawFit, ForecastLaw]:
    """The block's law of the validated form, with its forward errors."""
    if not len(observations):
        raise UserError(f"no score of block '{block}' to forecast from, besides those of the target")
    validation = validate(observations, loss=loss)
    name = form or validation.chosen
    if name is None:
        raise UserError(
            f"no form can be chosen for block {block} ({validation.reason}): name one with --form, its error is then unknown"
        )
    try:
        fit = fit_law(observations, name, loss=loss)
    except NotIdentified as reason:
        raise UserError(f"form {name} cannot be fitted to block {block}: {reason}") from reason
    errors = validation.of(name)
    law = ForecastLaw(
        block,
        name,
        fit.equation,
        fit.parameters,
        loss,
        errors.median_error,
        errors.rms_error,
        errors.max_error,
        validation,
        fit.notes if observations.young is None else (*fit.notes, Note("young", observations.young)),
    )
    return fit, law


def _forecast_cell(target: Target, fit: LawFit, law: ForecastLaw, force: bool, beside: str = "") -> CellForecast:
    """One cell's forecast, or the reason that there is none."""
    step, said = target.steps[-1], []
    common, at_common = int(fit.estimate.data.rows["step"].iloc[0]), FORMS[law.form].steps == "common"
    if at_common and common in target.steps:
        step = common
    row = target.at(step)
    columns = {name: np.array([float(row[name])]) for name in VARIABLES}
    one: Prediction | None = fit.predict(columns, law.rms_error or 0.0)[0]
    beyond = one.decades_beyond
    if at_common and step != common:
        one = None
        said.append(f"refused: form {law.form} was fitted at step {common} and does not know step {step}")
    elif beyond > MAX_DECADES and not force:
        one = None
        said.append(f"refused: {beyond:.2f} decades past the data, more than {MAX_DECADES:g} (--force prints it)")
    elif beyond > 0.01:
        said.append(f"extrapolated {beyond:.2f} decades past the data")
    if law.rms_error is None:
        said.append("the form has no forward validation")
    said += [beside] if beside else []
    return _record(target, step, one, beyond, "; ".join(said))


def _record(target: Target, step: int, one: Prediction | None, beyond: float, said: str) -> CellForecast:
    row = target.at(step)
    trained = f"training: {target.status}" if begun(target) else ""
    return CellForecast(
        **{name: plain(row[name]) for name in _ROW_FIELDS},
        cell=target.name,
        status=target.status,
        score=None if one is None else one.score,
        confidence=None if one is None else one.confidence,
        prediction=None if one is None else one.prediction,
        decades_beyond=beyond,
        said="; ".join(part for part in (said, trained) if part) or None,
    )


def score_all(study: StudyResults, folder: Path) -> list[ScoredForecast]:
    """Every forecast in `folder` against what has been measured, oldest first.

    Raises:
        UserError: if there is none, or a file is not a forecast.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise UserError(f"no forecast in {folder}: freeze one with `dit forecast DIR --for XL` before training it")
    return [_score_file(study, path) for path in paths]


def _score_file(study: StudyResults, path: Path) -> ScoredForecast:
    value = read_json(path)
    try:
        return _scored(study, path, value)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise UserError(
            f"{path} is not a forecast of this version ({error!r:.80}): move it out of the folder"
        ) from error


def _scored(study: StudyResults, path: Path, value: dict[str, Any]) -> ScoredForecast:
    trouble = _trouble(study, path, value)
    cells, pending = [], []
    promised = {law["block"]: law["median_error"] for law in value["laws"]}
    for one in value["cells"]:
        measured = _measured(study, one, value["metric"], value["protocol"])
        if measured is None:
            pending.append(f"{one['cell']} at step {one['step']}")
        elif one["score"] is not None:
            between = Interval(**one["prediction"])
            cells.append(
                ScoredCell(
                    one["cell"],
                    one["block"],
                    one["step"],
                    one["score"],
                    measured,
                    one["score"] / measured - 1,
                    measured in between,
                    between,
                    promised[one["block"]],
                )
            )
    return ScoredForecast(
        path=str(path),
        created=value["created"],
        target=value["target"],
        retrospective=value["retrospective"],
        trouble=trouble,
        cells=tuple(cells),
        pending=tuple(pending),
        median_error=float(np.median([abs(one.error) for one in cells])) if cells else None,
    )


def _trouble(study: StudyResults, path: Path, value: dict[str, Any]) -> str | None:
    """What is wrong with a file: changed since it was frozen, renamed, or made from scores that the study no longer has."""
    if content_hash(value) != value["sha256"]:
        return "tampered: its content no longer has the hash it was frozen with"
    if value["sha256"][:12] not in path.name:
        return f"tampered: its name does not carry its hash {value['sha256'][:12]}"
    metric = value["metric"]
    now = (
        {(row["run"], row["step"], row["protocol"]): row["value"] for row in figure_rows(study.table, metric)}
        if (metric in study.table)
        else {}
    )
    changed = [row for row in value["inputs"] if now.get((row["run"], row["step"], row["protocol"])) != row["value"]]
    return f"{len(changed)} of its {len(value['inputs'])} input scores have changed or are gone" if changed else None


def _measured(study: StudyResults, cell: dict[str, Any], metric: str, protocol: str) -> float | None:
    """Geometric mean over seeds of the cell's scores at the forecast's step and protocol; None if there is none."""
    if metric not in (table := study.table):
        return None
    mask = (table["protocol"] == protocol) & (table["step"] == cell["step"]) & table[metric].notna()
    for name in ("block", "size", "patch_size", "image_size"):
        mask &= table[name] == cell[name]
    values = table.loc[mask.fillna(False).astype(bool), metric].to_numpy(dtype=float)
    return float(np.exp(np.log(values).mean())) if len(values) else None
