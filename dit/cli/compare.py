"""Hold a study's scores against the published ones, or against another study's, cell by cell.

    dit compare runs/paper
    dit compare runs/wide runs/narrow --ignore sample_seed --format markdown
    dit compare runs/paper --with field

Two scores get a difference only where cell, step and protocol agree; otherwise the row names what differs (first the study's, then the
other's). A gap inside the noise of retraining is not significant: the seeds' own spread where a cell has two or more, else 1.3 % for
each single run, as a 95 % interval of the difference (docs/results.md). With the field, each cell stands beside every implementation that
published it, the nearest protocol first, and the noise is the 5 % by which implementations stray, whatever the seeds say (docs/field.md).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from analysis.tables import FORMATS, PARQUET, deliver, style_of
from dit.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("study", metavar="DIR", help="a study's folder, or 'paper'")
    add("other", metavar="OTHER", nargs="?", help="another study's, 'paper' (default) or 'field'")
    add("--with", metavar="OTHER", dest="beside", help="the same as OTHER")
    add("--where", metavar="EXPR", help="rows of DIR to compare, like \"block == 'adaln_zero'\"")
    add("--ignore", metavar="PART,...", default="", help="give a difference although these parts differ")
    add("--every-step", action="store_true", help="at every step that both have, not the last alone")
    add("--noise", type=float, metavar="PERCENT", help="spread of a single training (default 1.3; of the field 5)")
    add("--format", choices=(*FORMATS, PARQUET), help="(default: as --out ends, or table)")
    add("--out", type=Path, metavar="FILE", help="write there: .csv, .json, .md, .tex, .txt or .parquet")
    add("--json", action="store_const", const="json", dest="format", help="same as --format json")


def run(args: argparse.Namespace) -> int:
    """Print the comparison to standard output, and a summary to standard error."""
    from analysis.compare import COLUMNS, COV, IMPLEMENTATIONS, Noise, compare
    from analysis.results import collect

    style = style_of(args.format, args.out)
    if args.noise is not None and not 0 < args.noise < 100:
        raise UserError(f"--noise {args.noise:g}: expected a percentage above 0 and below 100")
    if args.other and args.beside:
        raise UserError(f"{args.other} and --with {args.beside} are two others: give one")
    other = args.other or args.beside or "paper"
    between = other == "field"
    cov = (IMPLEMENTATIONS if between else COV) if args.noise is None else args.noise / 100
    ignore = [part.strip() for part in args.ignore.split(",") if part.strip()]
    first, second = collect(args.study).where(args.where), collect(other)
    found = compare(first, second, ignore, args.every_step, Noise(cov, between=between))
    columns = list(COLUMNS)
    if style not in ("csv", "json", PARQUET):
        shown = {name for row in found.rows for name, value in row.items() if value is not None}
        columns = [name for name in COLUMNS if name in shown and name not in ("unsaid", "source")]
    deliver(found.rows, columns, style, args.out)
    verdicts = dict.fromkeys(row["verdict"] for row in found.rows)
    print(", ".join(f"{found.count(verdict)} {verdict}" for verdict in verdicts), file=sys.stderr)
    if found.unmatched:
        print(f"{second.name} has no score of {', '.join(found.unmatched)}", file=sys.stderr)
    unsaid = dict.fromkeys(row["unsaid"] for row in found.rows if row["unsaid"])
    for parts in unsaid:
        print(f"{second.name} leaves unsaid, and they are taken to agree: {parts}", file=sys.stderr)
    return 0
