"""Query the results table of a study, or of the paper: filter, average over seeds, sort, choose columns and format.

    dit results runs/demo --where "size == 'XL'" --over-seeds --sort fd_digits
    dit results runs/demo --out demo.parquet

The formats for reading show the main columns unless --columns names others ("all" for every one); CSV, JSON and Parquet hold every
column at full precision. Over seeds, a score's column is the mean, <score>_sd the standard deviation of single runs, n the seeds.
Gflops count one multiply-add as one flop.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.tables import FORMATS, PARQUET, deliver, style_of

if TYPE_CHECKING:
    from analysis.frames import Frame
    from analysis.results import StudyResults

_HIDDEN = ("run", "recipe", "study", "tokens", "images_seen", "nfe", "sampling_gflops")
"""Columns that a table for reading leaves out unless asked."""
_HIDDEN_WHERE_EQUAL = ("image_size", "batch_size", "source")
"""And these, where all rows have the same."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "source",
        metavar="DIR|paper|baselines|field",
        help="a study's folder; 'paper', 'baselines' or 'field' for published numbers",
    )
    parser.add_argument(
        "--where", metavar="EXPR", help="rows to show, like \"block == 'adaln_zero' and patch_size == 2\""
    )
    parser.add_argument("--sort", metavar="COLUMN", help="sort by a column")
    parser.add_argument("--descending", action="store_true", help="largest first")
    parser.add_argument("--columns", metavar="A,B,...", help="columns to show, in this order")
    parser.add_argument("--over-seeds", action="store_true", help="mean, sd and n over the seeds of each cell and step")
    parser.add_argument("--format", choices=(*FORMATS, PARQUET), help="(default: as --out ends, or table)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write there: .csv, .json, .md, .tex, .txt or .parquet"
    )
    parser.add_argument("--json", action="store_const", const="json", dest="format", help="same as --format json")


def run(args: argparse.Namespace) -> int:
    """Print the table to standard output, and the floors to standard error."""
    from analysis.results import collect
    from dit.design import query

    style = style_of(args.format, args.out)
    study = collect(args.source)
    chosen = study.where(args.where)
    table = chosen.over_seeds() if args.over_seeds else chosen.table
    if args.sort:
        table = query.sort(table, args.sort, args.descending)
    columns = list(table.columns)
    if args.columns and args.columns != "all":
        columns = [name.strip() for name in args.columns.split(",")]
        query.require_columns(table, columns)
    elif not args.columns and style not in ("csv", "json", PARQUET):
        present = (study.table if table.empty else table).notna().any().reindex(table.columns, fill_value=True)
        hidden = _HIDDEN if present["block"] else _HIDDEN[2:]  # where no cell says which row it is, the name does
        equal = [name for name in _HIDDEN_WHERE_EQUAL if table[name].nunique() < 2]
        columns = [name for name in columns if name not in (*hidden, *equal) and present[name]]
    deliver(table.to_dict("records"), columns, style, args.out)
    _remark(study, table, args)
    return 0


def _remark(study: StudyResults, table: Frame, args: argparse.Namespace) -> None:
    """What a reader should know beside the table, on standard error: no match, a ranking across protocols, the floors."""
    if table.empty and args.where is None:
        print("no run has a score yet: only failed ones are on record", file=sys.stderr)
    elif table.empty:
        print(f"no row of {len(study.table)} matches --where {args.where!r}", file=sys.stderr)
    present = list(dict.fromkeys(table["protocol"].dropna()))
    if args.sort in study.metrics and len(present) > 1:
        print(
            f"scores under {len(present)} protocols do not rank against each other; "
            f"pick one, as in --where \"protocol == '{present[0]}'\"",
            file=sys.stderr,
        )
    for floor in dict.fromkeys(study.floors[key] for key in present if key in study.floors):
        keys = ", ".join(key for key in present if study.floors.get(key) == floor)
        print(f"floor {floor:.4g} (half of the real set against the other half) under protocol {keys}", file=sys.stderr)
