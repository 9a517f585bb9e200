"""SQL over a study: DuckDB in memory, with the tables `results`, `losses` and `runs`, and no way to files, network or settings.

results   the results table (`dit.design.rows`): a row for each score and each failed run
losses    a row for each logged step, led by its cell
runs      a row for each run of the study: its cell, hash, steps asked for, and where it stands (state, step, attempt, loss, reason)
"""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import records
from analysis.frames import Frame
from analysis.results import PUBLISHED, collect, losses, study_folder
from dit.design.rows import Row
from dit.errors import UserError

TABLES = ("results", "losses", "runs")
_CLOSED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
}


def query(source: str | Path, text: str) -> tuple[list[Row], list[str]]:
    """The rows that one SELECT gives, and its columns.

    Raises:
        UserError: for anything but one query, one that DuckDB refuses, no study, or no DuckDB.
    """
    try:
        import duckdb
    except ImportError as error:
        raise UserError("SQL needs DuckDB: pip install 'dit-scaling[sql]'") from error
    with duckdb.connect(":memory:", config=_CLOSED) as connection:
        try:
            statements = connection.extract_statements(text)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise UserError(f"{text!r} is not one query: expected a single SELECT over {', '.join(TABLES)}")
            for name in TABLES:
                if re.search(rf"\b{name}\b", text, re.IGNORECASE):
                    connection.register(name, _typed(_table(source, name)))
            connection.execute("SET lock_configuration = true")
            answer = connection.execute(text)
            columns = _distinct([column[0] for column in answer.description])
            return [dict(zip(columns, map(_plain, row))) for row in answer.fetchall()], columns
        except duckdb.Error as error:
            raise UserError(_one_line(str(error))) from error


def _table(source: str | Path, name: str) -> Frame:
    published = str(source) in PUBLISHED
    match name:
        case "results":
            return collect(source).table
        case _ if published:
            raise UserError(f"'{source}' has no table {name}: only results are published")
        case "losses":
            return losses(source)
        case _:
            folder = study_folder(source)
            return records.statuses(folder, records.cells(folder))


def _typed(table: Frame) -> Frame:
    """Text columns say that they are text, also where every value is missing."""
    return table.astype({name: pd.StringDtype() for name in table.columns if table[name].dtype == object})


def _plain(value: Any) -> Any:
    """What JSON and tables can hold: decimals become floats; dates, lists and structs their text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return float(value) if isinstance(value, Decimal) else str(value)


def _distinct(names: list[str]) -> list[str]:
    """Names, with a number behind each that was there before."""
    found: list[str] = []
    for name in names:
        alike = sum(one == name for one in names[: len(found)])
        found.append(f"{name}_{alike}" if alike else name)
    return found


def _one_line(message: str) -> str:
    """DuckDB's message without its picture of the query."""
    return " ".join(message.split("\n\nLINE ")[0].split())
