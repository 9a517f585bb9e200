"""Any table of sizes, data and scores as observations: a CSV or Parquet file, or a data frame, without block, size or patch.

>>> observe_table("runs.csv", {"params": "N", "images_seen": "D", "score": "loss"})

The file's own numbers are kept, N and C included. Each (N, D) is a cell of its own; seeds of it share the cell. Without a column for C,
C = 6 N D as in the literature; without one for D, D = C / (6 N). D counts what the file counts: images, tokens, examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from analysis.fits.observations import Observations
from analysis.frames import Frame
from dit.design.parts import nearest
from dit.design.query import filter_rows
from dit.errors import UserError

SCORE = "score"
PER_PAIR = 6.0
"""C / (N D) where the file does not tell C: forward and backward pass, multiply and add counted apart."""
_NEEDED = ("params", "images_seen", "train_gflops")
FIELDS = (*_NEEDED, SCORE, "seed")
SUFFIXES = (".csv", ".parquet")
_SAME = 1.02  # sizes closer than this are one, as counts of one model with and without a head are not


@dataclass(frozen=True)
class TableObservations(Observations):
    """Rows of a table. All of them enter every form: there is no training step that they share."""

    of_table: ClassVar[bool] = True

    @cached_property
    def cells(self) -> np.ndarray:
        """Number of the cell (N, D) of each row."""
        return self.rows.groupby(["size", "step"], sort=False).ngroup().to_numpy()

    @cached_property
    def common(self) -> np.ndarray:
        """Mask (n,): all rows."""
        return np.ones(len(self), dtype=bool)


def is_table(source: str) -> bool:
    """Whether a command's source is a table rather than a study's folder."""
    return source.lower().endswith(SUFFIXES)


def read_table(source: str | Path | Frame) -> Frame:
    """The table of a CSV or Parquet file; a frame as it is.

    Raises:
        UserError: if there is no such file, it cannot be read, or pyarrow is missing for Parquet.
    """
    if isinstance(source, pd.DataFrame):
        return source
    path = Path(source)
    if not path.is_file():
        raise UserError(f"no file {path}: expected a table ending in {' or '.join(SUFFIXES)}")
    try:
        return pd.read_csv(path) if path.suffix.lower() == ".csv" else pd.read_parquet(path)
    except ImportError as error:
        raise UserError(f"{path}: Parquet needs pyarrow, which is not installed: save the table as CSV") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as a table: {str(error).splitlines()[0]}") from error


def observe_table(
    source: str | Path | Frame, fields: Mapping[str, str], by: str | None = None, where: str | None = None
) -> TableObservations:
    """The rows of a table as observations; `fields` names the column of each of `FIELDS`, `by` that of groups with laws
    of their own; `where` filters the rows first.

    A field that is not named is looked for under its own name. Rows without a score are left out.

    Raises:
        UserError: for an unknown field, a column that the table does not have, numbers that are not positive, or too few columns.
    """
    table = read_table(source)
    table = table if where is None else filter_rows(table, where).reset_index(drop=True)
    found = {name: _column(table, name, fields[name]) for name in fields}
    found |= {name: name for name in FIELDS if name not in found and name in table.columns}
    if SCORE not in found:
        raise UserError(f"the score is in no column yet: name it, as in --map score=COLUMN; {_there(table)}")
    if sum(name in found for name in _NEEDED) < 2 or "params" not in found:
        raise UserError(
            "a law needs N and one of D and C: name them, as in --map params=COLUMN --map images_seen=COLUMN "
            f"(or train_gflops=COLUMN); {_there(table)}"
        )
    group = None if by is None else _column(table, "by", by)
    table = table[table[found[SCORE]].notna()].reset_index(drop=True)
    if table.empty:
        raise UserError(f"no row of the table has a score in column '{found[SCORE]}'")
    rows = {name: _positive(table, name, found[name]) for name in (*_NEEDED, SCORE) if name in found}
    if "train_gflops" not in rows:
        rows["train_gflops"] = PER_PAIR * rows["params"] * rows["images_seen"]
    if "images_seen" not in rows:
        rows["images_seen"] = rows["train_gflops"] / (PER_PAIR * rows["params"])
    size = _levels(rows["params"])
    made = pd.DataFrame(
        {
            "run": [f"row {at + 1}" for at in range(len(table))],
            "block": "table" if group is None else table[group].astype(str),
            "size": [f"{one:.4g}" for one in size],
            "patch_size": 1,
            "image_size": 1,
            "tokens": 1.0,
            "seed": table[found["seed"]] if "seed" in found else None,
            "step": pd.factorize(rows["images_seen"], sort=True)[0],
            "gflops": rows["train_gflops"] / (3 * rows["images_seen"]),
            **rows,
        }
    )
    name = source.name if isinstance(source, Path) else source if isinstance(source, str) else "table"
    protocol = {"features": "table", "counted": "train_gflops" in found}
    return TableObservations(Path(name).name, made, SCORE, found[SCORE], protocol)


def _column(table: Frame, name: str, column: str) -> str:
    if name not in (*FIELDS, "by"):
        raise UserError(f"--map {name}={column}: expected one of {', '.join(FIELDS)}{nearest(name, FIELDS)}")
    if column not in table.columns:
        option = f"--by {column}" if name == "by" else f"--map {name}={column}"
        raise UserError(
            f"{option}: the table has no column '{column}'{nearest(column, table.columns)}; {_there(table)}"
        )
    return column


def _there(table: Frame) -> str:
    return f"its columns are {', '.join(map(str, table.columns)) or 'none'}"


def _positive(table: Frame, name: str, column: str) -> np.ndarray:
    """A column of positive numbers (n,)."""
    values = np.asarray(pd.to_numeric(table[column], errors="coerce"), dtype=float)
    wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(wrong):
        raise UserError(
            f"{name} in row {wrong[0] + 1} (column '{column}') is {table[column].iloc[wrong[0]]}: laws are fitted to logarithms and "
            "need numbers above 0"
        )
    return values


def _levels(params: np.ndarray) -> np.ndarray:
    """The size of each row (n,): parameter counts that rounding sets apart are one."""
    order = np.argsort(params, kind="stable")
    steps = np.diff(np.log(params[order])) > np.log(_SAME)
    level = np.empty(len(params), dtype=int)
    level[order] = np.concatenate([[0], np.cumsum(steps)])
    means = np.exp(np.bincount(level, np.log(params)) / np.bincount(level))
    return means[level]
