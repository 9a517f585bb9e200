"""Filter, sort and choose columns of the results table, or of the rows of a plan.

A `--where` expression is one for `pandas.DataFrame.eval` (python engine) over the columns of `dit.design.rows`, as in
`block == 'adaln_zero' and patch_size == 2`; it must give one truth value for each row.
"""

from __future__ import annotations

import tokenize

import pandas as pd

from analysis.frames import Frame, frame
from dit.design.rows import Row
from dit.errors import UserError


def filter_rows(table: Frame, expression: str) -> Frame:
    """The rows for which the expression holds.

    Raises:
        UserError: if it does not parse, names an unknown column, or does not give a truth value for each row.
    """
    columns = ", ".join(table.columns)
    trouble = f"--where {expression!r}"
    if "@" in expression:
        raise UserError(f"{trouble} has an '@': expected an expression over the columns {columns}")
    try:
        mask = table.eval(expression, engine="python")
    except pd.errors.UndefinedVariableError as error:
        raise UserError(f"{trouble}: {error}; expected the columns {columns}") from error
    except (SyntaxError, tokenize.TokenError, ValueError, NotImplementedError) as error:
        reason = str(error.args[0]) if error.args else "not an expression"
        raise UserError(
            f"{trouble} does not parse ({reason}): expected something like \"size == 'S'\" over the columns {columns}"
        ) from error
    except (TypeError, AttributeError, KeyError, ArithmeticError, RecursionError) as error:
        raise UserError(
            f"{trouble} cannot be applied ({error}): compare columns with values of their kind; {columns}"
        ) from error
    if not isinstance(mask, pd.Series) or mask.dtype not in ("bool", "boolean") or not mask.index.equals(table.index):
        raise UserError(
            f"{trouble} does not give true or false for each row: expected a comparison, like \"size == 'S'\", over the columns {columns}"
        )
    return table[mask.astype("boolean").fillna(False)]


def select(rows: list[Row], where: str) -> list[Row]:
    """The rows of a plan for which the expression holds, in their order.

    Raises:
        UserError: as `filter_rows` does.
    """
    if not rows:
        return []
    return [rows[index] for index in filter_rows(frame(rows), where).index]


def sort(table: Frame, column: str, descending: bool = False) -> Frame:
    """Rows by a column's values, gaps last, equal values in their present order.

    Raises:
        UserError: for an unknown column.
    """
    require_columns(table, [column])
    return table.sort_values(column, ascending=not descending, kind="stable", na_position="last")


def require_columns(table: Frame, columns: list[str]) -> None:
    """Check that all columns exist.

    Raises:
        UserError: naming the first unknown one and the columns there are.
    """
    for name in columns:
        if name not in table.columns:
            raise UserError(f"unknown column '{name}': expected one of {', '.join(table.columns)}")


def pairs(texts: list[str], option: str) -> dict[str, str]:
    """FIELD=... options as a dictionary."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UserError(
                f"{option} {text}: expected FIELD=..., as in {option} {'loss=train/loss' if option == '--map' else 'seed=0'}"
            )
        found[name] = value
    return found
