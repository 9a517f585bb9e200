"""Whether figures still show what is on record: rows, protocols, code, parameters and files against each figure's sidecar."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from analysis.axes import axis_of
from analysis.figures.drawing import Skipped
from analysis.figures.registry import code_of, drawn, known, parts_of
from analysis.provenance import figure_rows, file_digest, rows_digest
from analysis.results import StudyResults
from analysis.style import STYLES
from dit.errors import UserError
from dit.store.paths import is_component
from dit.store.study import read_json

_NEEDED = {"style", "where", "code_sha256", "files_sha256", "rows_sha256", "rows", "runs", "protocols"}


@dataclass(frozen=True)
class Verdict:
    """One figure: fresh (`stale` is None), or why it is not; `absent` is the reason why the study carries no such figure."""

    name: str
    stale: str | None = None
    absent: str | None = None


def verify(study: StudyResults, folder: Path, only: list[str] | None = None, style: str = "paper") -> Iterator[Verdict]:
    """A verdict on each figure (all, or those named) in `folder`; a figure that the study carries and the folder lacks is stale.

    Each is held against the study's rows as that figure's sidecar says they were filtered.

    Raises:
        UserError: for an unknown figure or style, or no folder.
    """
    names = known(only)
    if style not in STYLES:
        raise UserError(f"unknown style '{style}': expected one of {', '.join(STYLES)}")
    if not folder.is_dir():
        raise UserError(f"no figures in {folder}: draw them first with `dit figures`")
    path = folder / "by.json"
    sidecar = read_json(path) if path.exists() else None
    if sidecar is not None and _is_sidecar(sidecar) and isinstance(sidecar.get("by"), str):
        study = replace(study, by=sidecar["by"])
        axis = axis_of(study.where(sidecar["where"]))
    else:  # drawn without one, unless nothing is drawn
        axis = None if any(folder.glob("*.json")) else axis_of(study)
    for place, part, _, here in parts_of(study, axis, folder, None):
        for name in names:
            if name in here:
                verdict = _verify_one(part, place, name, style)
                yield replace(verdict, name=str((place / name).relative_to(folder)))


def _verify_one(study: StudyResults, folder: Path, name: str, style: str) -> Verdict:
    path = folder / f"{name}.json"
    present = [one for one in (path, *(folder / f"{name}.{kind}" for kind in ("pdf", "png"))) if one.exists()]
    sidecar = read_json(path) if path.exists() else None
    if sidecar is not None and not _is_sidecar(sidecar):
        return Verdict(name, f"{path.name} is no sidecar of this version")
    try:
        drawing = drawn(study if sidecar is None else study.where(sidecar["where"]), name, STYLES[style])
    except Skipped as reason:
        return Verdict(name, f"the study carries it no longer: {reason}" if present else None, str(reason))
    if sidecar is None:
        return Verdict(name, f"{path.name} is missing" if present else "it has not been drawn")
    for file, expected in sidecar["files_sha256"].items():
        if not (folder / file).is_file():
            return Verdict(name, f"{file} is missing")
        if file_digest(folder / file) != expected:
            return Verdict(name, f"{file} was changed after it was drawn")
    if sidecar["style"] != style:
        return Verdict(name, f"it was drawn in style {sidecar['style']}, not {style}")
    if sidecar["code_sha256"] != code_of(name):
        return Verdict(name, "the code that draws it has changed")
    return Verdict(name, _changed(study, sidecar, figure_rows(drawing.rows, drawing.metric), drawing.extra))


def _is_sidecar(value: Any) -> bool:
    """Whether it has the fields of a sidecar, of their kinds; the files it names lie beside it."""
    kinds = (("where", str | None), ("files_sha256", dict), ("rows", list), ("runs", list), ("protocols", dict))
    return (
        isinstance(value, dict)
        and value.keys() >= _NEEDED
        and all(isinstance(value[name], kind) for name, kind in kinds)
        and all(isinstance(row, dict) and "run" in row for row in (*value["rows"], *value["runs"]))
        and all("hash" in run for run in value["runs"])
        and all(map(is_component, value["files_sha256"]))
    )


def _changed(
    study: StudyResults, sidecar: dict[str, Any], rows: list[dict[str, Any]], extra: dict[str, Any]
) -> str | None:
    """What differs between the sidecar and the rows that the figure would show now."""
    if rows_digest(sidecar["rows"]) != sidecar["rows_sha256"]:
        return "the rows in its sidecar were changed"
    if rows_digest(rows) != sidecar["rows_sha256"]:
        before, now = ({repr(row): row for row in some} for some in (sidecar["rows"], rows))
        changed = [row for key, row in [*now.items(), *before.items()] if (key in now) != (key in before)]
        runs = list(dict.fromkeys(str(row["run"]) for row in changed))
        more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
        return f"{len(changed)} rows behind it differ from those on record now (run {runs[0]}{more})"
    for one in sidecar["runs"]:
        if one["hash"] != study.identities.get(one["run"]):
            return f"run {one['run']} has another configuration now"
    for key, protocol in sidecar["protocols"].items():
        if protocol != study.protocols.get(key):
            return f"protocol {key} was changed"
    for key in (key for key in extra if key.endswith("_sha256")):
        if extra[key] != sidecar.get(key):
            return f"{key.removesuffix('_sha256')} behind it have changed"
    return None
