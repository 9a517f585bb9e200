"""The cells that a command is about, as `--cell` and `--where` name them."""

from __future__ import annotations

import argparse

from dit.design.config import RunConfig
from sweeps.ledger import Ledger
from sweeps.status import status_rows


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--cell", action="append", metavar="ID", help="this cell (its run's name); may be given again")
    parser.add_argument("--where", help="cells satisfying this, such as \"status == 'failed' and size == 'XL'\"")


def chosen(ledger: Ledger, args: argparse.Namespace) -> tuple[RunConfig, ...]:
    """Those cells; all of them where neither option is given.

    Raises:
        UserError: for a cell that the study does not have, or an expression that does not parse.
    """
    named = tuple(ledger.run(name) for name in args.cell) if args.cell else ledger.study.runs
    if args.where is None:
        return named
    from dit.design.query import select

    satisfying = {row["run"] for row in select(status_rows(ledger), args.where)}
    return tuple(run for run in named if run.run in satisfying)
