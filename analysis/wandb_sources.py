"""Runs as Weights & Biases recorded them: through its API, or from files exported from it.

Files, any mixture, merged by the run's name:

    history of one run   .csv, .json (a list of rows) or .jsonl, one row for each `_step`; the file's name is the run's
    whole runs           .json: {"name", "config", "state", "history": [...]}, or a list of such
    a chart's export     .csv with columns "<run> - <metric>" beside one for the step (their __MIN and __MAX are left out)
    a project's table    .csv with a column Name: one row for each run, its configuration and last values
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from dit.errors import UserError

FINISHED = "finished"
_SUFFIXES = (".csv", ".json", ".jsonl")


@dataclass
class LoggedRun:
    """One run: its configuration as logged, the rows of its history in order, its state, and where it was found."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    state: str = FINISHED
    source: str = ""

    def columns(self) -> list[str]:
        """Every name that some row holds."""
        return list(dict.fromkeys(name for row in self.rows for name in row))


def flat(config: dict[str, Any], lead: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, names joined by dots; names that wandb keeps for itself are left out."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if str(name).startswith("_"):
            continue
        found.update(flat(value, f"{lead}{name}.") if isinstance(value, dict) else {f"{lead}{name}": value})
    return found


def read_project(path: str, api: Any = None) -> list[LoggedRun]:
    """Every run of ENTITY/PROJECT with its whole history (`scan_history`, which is not sampled).

    Args:
        api: a `wandb.Api`; made here if not given.

    Raises:
        UserError: if wandb refuses, cannot be reached, or the project has no run.
    """
    import wandb
    from wandb import errors

    try:
        api = wandb.Api() if api is None else api
        runs = [
            LoggedRun(run.name, dict(run.config), list(run.scan_history()), run.state, f"wandb:{path}/{run.id}")
            for run in api.runs(path)
        ]
    except (errors.Error, OSError, ValueError) as error:  # requests' errors are OSErrors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"wandb project {path} cannot be read ({reason}): check the name and `wandb login`") from error
    if not runs:
        raise UserError(f"wandb project {path} has no runs")
    return runs


def read_files(paths: Iterable[Path]) -> list[LoggedRun]:
    """The runs in exported files and in folders of them, merged by name.

    Raises:
        UserError: for a file that is missing, of another kind or not readable as what its name says.
    """
    runs: dict[str, LoggedRun] = {}
    for path in _expanded(paths):
        try:
            found = _read_csv(path) if path.suffix == ".csv" else _read_json(path)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not readable as an export of wandb: {' '.join(str(error).split())}") from error
        for run in found:
            known = runs.setdefault(run.name, LoggedRun(run.name, source=f"wandb:{path.name}"))
            known.config.update(run.config)
            known.rows.extend(run.rows)
            known.state = run.state if run.state != FINISHED else known.state
    if not any(run.rows for run in runs.values()):
        raise UserError(
            f"no history in {', '.join(map(str, paths))}: expected files exported from wandb, see docs/results.md"
        )
    return list(runs.values())


def _expanded(paths: Iterable[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found.extend(sorted(one for one in path.rglob("*") if one.suffix in _SUFFIXES and one.is_file()))
        elif not path.is_file():
            raise UserError(f"no file {path}: expected one exported from wandb, or ENTITY/PROJECT")
        elif path.suffix not in _SUFFIXES:
            raise UserError(f"{path}: expected a name ending in {', '.join(_SUFFIXES)}")
        else:
            found.append(path)
    return found


def _read_json(path: Path) -> list[LoggedRun]:
    text = path.read_text(encoding="utf8")
    value = [json.loads(line) for line in text.splitlines() if line] if path.suffix == ".jsonl" else json.loads(text)
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, dict) for one in values):
        raise ValueError("expected rows or runs")
    whole = [one for one in values if "history" in one]
    if whole:
        return [_whole_run(one, path.stem) for one in whole]
    return [LoggedRun(path.stem, rows=[_without_gaps(row) for row in values])]


def _whole_run(value: dict[str, Any], name: str) -> LoggedRun:
    run = LoggedRun(
        value.get("name") or name, value.get("config") or {}, value["history"], value.get("state") or FINISHED
    )
    for what, one, kind in (("name", run.name, str), ("config", run.config, dict), ("state", run.state, str)):
        if not isinstance(one, kind):
            raise ValueError(f"{what} is {one!r}")
    if not isinstance(run.rows, list) or not all(isinstance(row, dict) for row in run.rows):
        raise ValueError("history is no list of rows")
    return run


def _read_csv(path: Path) -> list[LoggedRun]:
    table = pd.read_csv(path)
    rows = [_without_gaps(row) for row in table.to_dict("records")]
    if "_step" in table.columns:
        return [LoggedRun(path.stem, rows=rows)]
    if "Name" in table.columns:
        return [LoggedRun(str(row.pop("Name")), row, state=str(row.pop("State", FINISHED)).lower()) for row in rows]
    charts = [name for name in table.columns if " - " in name and not name.endswith(("__MIN", "__MAX"))]
    if not charts:
        return [LoggedRun(path.stem, rows=rows)]
    step = next((name for name in table.columns if " - " not in name), None)
    if step is None:
        raise ValueError("no column holds the step")
    runs: dict[str, LoggedRun] = {}
    for chart in charts:
        name, metric = chart.rsplit(" - ", 1)
        run = runs.setdefault(name, LoggedRun(name))
        run.rows.extend({"_step": row[step], metric: row[chart]} for row in rows if chart in row)
    return list(runs.values())


def _without_gaps(row: dict[str, Any]) -> dict[str, Any]:
    """A row less what is missing; wandb writes numbers that are not finite as text."""
    return {name: value for name, value in row.items() if value is not None and value == value and value != "NaN"}
