"""List a study's cells with tokens, parameters, Gflops and training compute, before anything runs.

Gflops count one multiply-add as one flop; training compute is Gflops x batch x steps x 3.
"""

from __future__ import annotations

import argparse
import sys

from dit.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("study", help="a study's name, or the path of a Python file with runs()")
    parser.add_argument("--where", help="only cells satisfying this, such as \"size == 'S' and patch_size == 2\"")
    parser.add_argument("--sort", help="column to sort by")
    parser.add_argument("--descending", action="store_true", help="largest first")
    parser.add_argument("--columns", help="comma-separated columns to show")
    parser.add_argument("--format", choices=("table", "csv", "json", "markdown", "latex"), default="table")
    parser.add_argument("--json", action="store_true", help="the same as --format json")


def run(args: argparse.Namespace) -> None:
    """Print the plan; totals go to standard error."""
    from analysis import tables
    from sweeps.plan import COLUMNS, plan, total
    from sweeps.study import declared, subset

    study = declared(args.study)
    runs = subset(study, args.where)
    rows = plan(study, runs)
    style = "json" if args.json else args.format
    columns = (
        [name.strip() for name in args.columns.split(",")]
        if args.columns
        else list(rows[0] if style == "json" else COLUMNS)
    )
    for name in [*columns, *([args.sort] if args.sort else [])]:
        if name not in rows[0]:
            raise UserError(f"unknown column '{name}': expected one of {', '.join(rows[0])}")
    if args.sort:
        rows.sort(key=lambda row: (row[args.sort] is None, row[args.sort]), reverse=args.descending)
    print(tables.render(rows, columns, style), end="")
    bill = total(runs)
    print(
        f"{bill.cells} cells: {bill.train_gflops:.3e} Gflops of training (Gflops x batch x steps x 3), "
        f"{bill.sampling_gflops:.3e} Gflops of sampling for their scores",
        file=sys.stderr,
    )
