"""Rows as text (aligned table, CSV, JSON, Markdown or LaTeX), on standard output or in a file, which may be Parquet too.

CSV and JSON hold every column at full precision; the formats meant for reading round to four or five significant digits and end with the
convention for Gflops. No pandas here, so that a table of counts prints at once.
"""

from __future__ import annotations

import csv
import io
import json
import math
import numbers
from pathlib import Path
from typing import Any

from dit.design.rows import Row
from dit.errors import UserError
from dit.store.files import whole

FORMATS = ("table", "csv", "json", "markdown", "latex")
PARQUET = "parquet"
SUFFIXES = {".csv": "csv", ".json": "json", ".md": "markdown", ".tex": "latex", ".txt": "table", ".parquet": PARQUET}
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


def style_of(style: str | None, out: Path | None) -> str:
    """The format to write: the one asked for, else the one that the file's name ends in, else an aligned table.

    Raises:
        UserError: for a file whose name tells none, or Parquet on standard output.
    """
    if style is None and out is not None:
        if out.suffix not in SUFFIXES:
            raise UserError(f"--out {out}: expected a name ending in {', '.join(SUFFIXES)}, or --format beside it")
        return SUFFIXES[out.suffix]
    if style == PARQUET and out is None:
        raise UserError("parquet is no text: name the file with --out FILE")
    return style or "table"


def deliver(rows: list[Row], columns: list[str], style: str, out: Path | None) -> None:
    """Print the rows, or write them to `out`, whole or not at all.

    Raises:
        UserError: for a file that cannot be written, or Parquet without the package that writes it.
    """
    if out is None:
        print(render(rows, columns, style), end="")
        return
    try:
        if out.is_dir():
            raise UserError(f"--out {out} is a folder: expected a file")
        if not out.parent.is_dir():
            raise UserError(
                f"--out {out} cannot be written: No such file or directory: make the folder {out.parent} first"
            )
        with whole(out) as beside:
            if style == PARQUET:
                _write_parquet(rows, columns, beside)
            else:
                beside.write_text(render(rows, columns, style), encoding="utf8")
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from error


def _write_parquet(rows: list[Row], columns: list[str], path: Path) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("parquet needs PyArrow: pip install 'dit-scaling[sql]', or choose --format csv") from error
    table = {name: [plain(row.get(name)) for row in rows] for name in columns}
    parquet.write_table(pyarrow.table(table), path)
