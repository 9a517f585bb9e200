"""Ask a study in SQL (DuckDB; `pip install 'dit-scaling[sql]'`).

    dit sql runs/demo "select block, size, min(fd_digits) from results group by all order by 3"

Tables: results (scores and failed runs, the columns of `dit results`), losses (logged steps), runs (where each run stands). One query a
call; it reads these tables and nothing else, neither files nor settings. Gflops count one multiply-add as one flop.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from analysis.tables import FORMATS, PARQUET, deliver, style_of


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "source", metavar="DIR|paper|baselines|field", help="a study's folder, or the published numbers"
    )
    parser.add_argument("query", metavar="QUERY", help="one SELECT")
    parser.add_argument("--format", choices=(*FORMATS, PARQUET), help="(default: as --out ends, or table)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write there: .csv, .json, .md, .tex, .txt or .parquet"
    )
    parser.add_argument("--json", action="store_const", const="json", dest="format", help="same as --format json")


def run(args: argparse.Namespace) -> int:
    """Print the answer to standard output, or write it."""
    from analysis.sql import query

    style = style_of(args.format, args.out)
    rows, columns = query(args.source, args.query)
    deliver(rows, columns, style, args.out)
    return 0
