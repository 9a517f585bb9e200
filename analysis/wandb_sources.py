"""Runs as Weights & Biases recorded them: through its API, or from files exported from it or written by it.

Files, any mixture:

    history of one run   .csv, .json (a list of rows) or .jsonl, one row for each `_step`; the file's name is the run's name or id
    whole runs           .json: {"name", "config", "state", "history": [...]}, or a list of such; "id" tells runs of one name apart
    a chart's export     .csv with columns "<run> - <metric>" beside one for the step (their __MIN and __MAX are left out)
    a project's table    .csv with wandb's columns Name, State, ...: one row for each run, its configuration and last values
    a run's own folder   wandb/run-* and wandb/offline-run-*, see `analysis.wandb_offline`

A run is its id. Two of one name in one file are two runs; files are put together by id, or by a name that only one run of each file has.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.wandb_offline import SUFFIX, read_offline
from dit.errors import UserError

FINISHED = "finished"
_SUFFIXES = (".csv", ".json", ".jsonl", SUFFIX)
_TABLE = ("Name", "State", "ID", "Created", "Runtime", "Sweep", "User", "Tags", "Notes")
"""Columns that wandb's own table of runs has."""
_WRAPPED = ({"value"}, {"value", "desc"})
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|infinity|nan)", re.IGNORECASE)
_GROUP = re.compile(r"[\w./]+: ")
_ORDER = OWN, TABLE, CHART, GROUPED = ("run", "table", "chart", "grouped")
"""What a file tells of a run, in the order in which files are put together: its history, a row, a line, a mean over several."""


@dataclass
class LoggedRun:
    """One run: its configuration as logged, the rows of its history in order, its state, and where it was found.

    `id`: wandb's own, where it is told. `table`: its row of a project's table, whose values are its last. `notes`: what to say of it.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    state: str = FINISHED
    source: str = ""
    id: str = ""
    table: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    kind: str = OWN

    def __post_init__(self) -> None:
        self.config = unwrapped(self.config)

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"'{self.name}' ({self.id})" if self.id and self.id != self.name else f"'{self.name}'"

    def columns(self) -> list[str]:
        """Every name that some row holds."""
        return list(dict.fromkeys(name for row in self.rows for name in row))


def unwrapped(value: Any) -> Any:
    """A configuration less the {"value": ...} that wandb's config.yaml has around each entry."""
    if isinstance(value, dict):
        return (
            unwrapped(value["value"]) if set(value) in _WRAPPED else {key: unwrapped(one) for key, one in value.items()}
        )
    return value


def flat(config: dict[str, Any], lead: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, names joined by dots; names that wandb keeps for itself are left out."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if str(name).startswith("_") and name != "_target_":  # Hydra's name for a class
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
            LoggedRun(
                run.name, dict(run.config), [*run.scan_history()], run.state, f"wandb:{path}/{run.id}", str(run.id)
            )
            for run in api.runs(path)
        ]
    except (errors.Error, OSError, ValueError) as error:  # requests' errors are OSErrors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"wandb project {path} cannot be read ({reason}): check the name and `wandb login`") from error
    if not runs:
        raise UserError(f"wandb project {path} has no runs")
    return runs


def read_files(paths: Iterable[Path]) -> list[LoggedRun]:
    """The runs in exported files and in folders of them.

    Raises:
        UserError: for a file that is missing, of another kind or not readable as what its name says, or runs that cannot be told apart.
    """
    read = {".csv": _read_csv, SUFFIX: _read_offline}
    files: dict[Path, list[LoggedRun]] = {}
    for path in _expanded(paths):
        try:
            files[path] = read.get(path.suffix, _read_json)(path)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error, OSError) as error:
            raise UserError(f"{path} is not readable as an export of wandb: {' '.join(str(error).split())}") from error
        for run in files[path]:
            run.source = f"wandb:{path.name}" + (f"/{run.id}" if run.id else "")
    runs = _merged(files)
    for run in runs:
        if run.table and not run.rows:
            run.rows = [run.table]
    if not any(run.rows for run in runs):
        raise UserError(
            f"no history in {', '.join(map(str, paths))}: expected files exported from wandb, see docs/results.md"
        )
    return runs


def _merged(files: dict[Path, list[LoggedRun]]) -> list[LoggedRun]:
    """The runs of all files. A history is of a run of its own; what else there is of a run goes to the one of its id, or of its name."""
    found: list[LoggedRun] = []
    for path, runs in sorted(
        files.items(), key=lambda item: max((_ORDER.index(run.kind) for run in item[1]), default=0)
    ):
        before, names = list(found), Counter(run.name for run in runs)
        for run in runs:
            same = [one for one in found if run.id and run.id in (one.id, "" if one.id else one.name)]
            if not same and (run.kind != OWN):
                same = [one for one in before if not (one.id and run.id) and run.name in (one.name, one.id)]
                if same and (len(same) > 1 or names[run.name] > 1):
                    several = ", ".join(dict.fromkeys([*(one.source for one in same), path.name]))
                    raise UserError(
                        f"several runs are named '{run.name}' in {several}, and {path.name} does not tell which of them it is of: read "
                        'them by ENTITY/PROJECT, add the column ID (a table) or "id" (JSON), or rename them in wandb and export again'
                    )
            if same:
                _add(same[0], run)
            elif run.kind == GROUPED:
                raise UserError(
                    f"{path}: '{run.name}' is a group, and a mean over its runs is no run: ungroup the runs in wandb and export again, or "
                    "read them by ENTITY/PROJECT"
                )
            else:
                found.append(run)
    return found


def _add(known: LoggedRun, run: LoggedRun) -> None:
    """Put what another file tells of a run to what is known of it."""
    logged = {(row["_step"], name): value for row in known.rows if "_step" in row for name, value in row.items()}
    for row in run.rows:
        for name, value in row.items():
            before = logged.get((row.get("_step"), name), value)
            if before != value and not (before != before and value != value):
                raise UserError(
                    f"{known.source} and {run.source} differ in {name} of run {known.label} at step {row['_step']}: {before} and {value}; "
                    "if they are two runs, import them apart"
                )
    for name, value in run.config.items():
        if known.config.setdefault(name, value) != value:
            raise UserError(
                f"{known.source} and {run.source} differ in {name} of run {known.label}: {known.config[name]!r} and {value!r}; "
                "if they are two runs, import them apart"
            )
    known.rows.extend(run.rows)
    known.table.update(run.table)
    known.notes.extend(run.notes)
    known.id = known.id or run.id
    known.state = run.state if run.state != FINISHED else known.state


def _expanded(paths: Iterable[Path]) -> list[Path]:
    """The files, each once; of a folder that wandb wrote a run to, its log alone."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(one for one in path.rglob("*") if one.suffix in _SUFFIXES and one.is_file())
            own = {one.parent for one in inside if one.suffix == SUFFIX}
            found.extend(one for one in inside if one.suffix == SUFFIX or not own & set(one.parents))
        elif not path.is_file():
            raise UserError(f"no file {path}: expected one exported from wandb, or ENTITY/PROJECT")
        elif path.suffix not in _SUFFIXES:
            raise UserError(f"{path}: expected a name ending in {', '.join(_SUFFIXES)}")
        else:
            found.append(path)
    return list({path.resolve(): path for path in found}.values())


def _read_offline(path: Path) -> list[LoggedRun]:
    run = read_offline(path)
    return [LoggedRun(run["name"] or run["id"], run["config"], run["history"], run["state"], id=run["id"])]


def _read_json(path: Path) -> list[LoggedRun]:
    text = path.read_text(encoding="utf8")
    value = [json.loads(line) for line in text.splitlines() if line] if path.suffix == ".jsonl" else json.loads(text)
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, dict) for one in values):
        raise ValueError("expected rows or runs")
    whole = [one for one in values if "history" in one]
    if whole and len(whole) < len(values):
        raise ValueError(f"{len(values) - len(whole)} of its {len(values)} runs have no history")
    if whole:
        return [_whole_run(one, path.stem) for one in whole]
    return _histories(path, [{name: one for name, one in row.items() if one is not None} for row in values])


def _whole_run(value: dict[str, Any], name: str) -> LoggedRun:
    run = LoggedRun(
        value.get("name") or value.get("id") or name,
        value.get("config") or {},
        value["history"],
        value.get("state") or FINISHED,
        id=value.get("id") or "",
    )
    kinds = ("name", run.name, str), ("config", run.config, dict), ("state", run.state, str), ("id", run.id, str)
    for what, one, kind in kinds:
        if not isinstance(one, kind):
            raise ValueError(f"{what} is {one!r}")
    if not isinstance(run.rows, list) or not all(isinstance(row, dict) for row in run.rows):
        raise ValueError("history is no list of rows")
    return run


def _histories(path: Path, rows: list[dict[str, Any]]) -> list[LoggedRun]:
    """The run that a file of rows is of, or the runs that a column of theirs tells apart."""
    for column in ("run_id", "run", "run_name", "name"):
        if len(names := dict.fromkeys(row.get(column) for row in rows)) > 1 and None not in names:
            return [
                LoggedRun(
                    str(name), rows=[row for row in rows if row[column] == name], id=str(name) * (column == "run_id")
                )
                for name in names
            ]
    counts = Counter(row["_step"] for row in rows if isinstance(row.get("_step"), int))
    for step, count in counts.items():
        if count > 1:
            raise ValueError(f"_step {step} is there {count} times: rows of several runs need a column run_id")
    return [LoggedRun(path.stem, rows=rows)]


def _read_csv(path: Path) -> list[LoggedRun]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        header, *lines = [line for line in csv.reader(file, strict=True) if line] or [[]]
    if not header:
        raise ValueError("it is empty")
    for at, line in enumerate(lines):
        if len(line) != len(header):
            raise ValueError(f"row {at + 1} has {len(line)} cells where the header has {len(header)}")
    if "Name" in header or len(set(_TABLE) & set(header)) > 1:
        return [_table_run(dict(zip(header, line)), f"{path.stem} row {at + 1}") for at, line in enumerate(lines)]
    if any(" - " in name for name in header):
        return _chart(header, lines)
    if repeated := [name for name, count in Counter(header).items() if count > 1]:
        raise ValueError(f"it has two columns {repeated[0]!r}")
    return _histories(path, [_cells(zip(header, line)) for line in lines])


def _table_run(texts: dict[str, str], name: str) -> LoggedRun:
    """The run of a row of a project's table."""
    given = {column: texts.pop(column, "") for column in ("Name", "State", "ID")}
    row = _cells(texts.items())
    name = given["Name"] or given["ID"] or name
    return LoggedRun(name, row, state=given["State"].lower() or FINISHED, id=given["ID"], table=row, kind=TABLE)


def _chart(header: list[str], lines: list[list[str]]) -> list[LoggedRun]:
    """The runs of a chart: the k-th column of one run's name and metric is that of the k-th run of that name."""
    step = next((name for name in header if " - " not in name), None)
    if step is None:
        raise ValueError("no column holds the step")
    if re.search(r"time|epoch|_runtime|_timestamp", step, re.IGNORECASE):
        raise ValueError(
            f"it is drawn over {step!r}, which is no step: choose Step as the chart's x-axis and export it again"
        )
    at = header.index(step)
    values = [[_cell(text) for text in line] for line in lines]
    runs: dict[tuple[str, int], LoggedRun] = {}
    seen: Counter[str] = Counter()
    for place, chart in enumerate(header):
        if " - " not in chart or chart.endswith(("__MIN", "__MAX")):
            continue
        name, metric = chart.rsplit(" - ", 1)
        run = runs.setdefault((name, seen[chart]), LoggedRun(name, kind=CHART))
        seen[chart] += 1
        column = "_step" if step == "Step" else step
        run.rows.extend({column: line[at], metric: line[place]} for line in values if line[place] is not None)
        ranges = [one for one in range(place + 1, min(place + 3, len(header))) if header[one].startswith(f"{chart}__M")]
        if ranges and _GROUP.match(name):
            run.kind = GROUPED
        if any(line[one] != line[place] for line in values for one in ranges if None not in (line[one], line[place])):
            run.notes.append(
                f"{metric} is a mean over several logged values each, as the chart shows it; a history has them all"
            )
    return list(runs.values())


def _cells(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    return {name: value for name, text in pairs if (value := _cell(text)) is not None}


def _cell(text: str) -> Any:
    """A cell's value: None if it is empty, else a number, true or false, or text."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    return {"": None, "true": True, "false": False}.get(text.lower(), text)
