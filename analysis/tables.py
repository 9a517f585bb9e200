"""Rows as text: aligned table, CSV, JSON, Markdown or LaTeX.

CSV and JSON hold every column at full precision; the formats meant for reading round to four or five significant digits and end with the
convention for Gflops. No pandas here, so that a table of counts prints at once.
"""

from __future__ import annotations

import csv
import io
import json
import math
import numbers
from typing import Any

from dit.errors import UserError
from dit.rows import Row

FORMATS = ("table", "csv", "json", "markdown", "latex")
CONVENTION = "Gflops count one multiply-add as one flop."
_STYLES = {"table": "simple", "markdown": "github", "latex": "latex_booktabs"}


def plain(value: Any) -> Any:
    """A cell as a JSON value: NumPy and pandas numbers become Python's, gaps become None."""
    if value is None or type(value).__name__ == "NAType" or value != value:
        return None
    if isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return value


def _shown(value: Any) -> str:
    value = plain(value)
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4g}" if abs(value) >= 1e6 else f"{value:.5g}"


def render(rows: list[Row], columns: list[str], style: str = "table") -> str:
    """The chosen columns of the rows as text, ending in a newline.

    Raises:
        UserError: for an unknown format.
    """
    if style not in FORMATS:
        raise UserError(f"unknown format '{style}': expected one of {', '.join(FORMATS)}")
    if style == "json":
        return (
            json.dumps([{name: plain(row.get(name)) for name in columns} for row in rows], indent=1, allow_nan=False)
            + "\n"
        )
    if style == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            values = [plain(row.get(name)) for name in columns]
            writer.writerow(
                ["" if value is None else repr(value) if isinstance(value, float) else value for value in values]
            )
        return text.getvalue()
    from tabulate import tabulate  # a tenth of a second that CSV and JSON need not pay

    cells = [[_shown(row.get(name)) for name in columns] for row in rows]
    right = [any(isinstance(plain(row.get(name)), int | float) for row in rows) for name in columns]
    body = tabulate(
        cells,
        headers=columns,
        tablefmt=_STYLES[style],
        disable_numparse=True,
        colalign=["right" if one else "left" for one in right] if rows else None,
    )
    if not any("gflops" in name for name in columns):
        return f"{body}\n"
    note = {"table": f"\n{CONVENTION}", "markdown": f"\n{CONVENTION}", "latex": f"% {CONVENTION}"}[style]
    return f"{body}\n{note}\n"
