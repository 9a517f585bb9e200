"""Cancel cells: a running worker saves the cell's state and stops at its next heartbeat, and nobody begins it until `dit retry`.

Without --cell and --where, every cell of the study that has not ended.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    from sweeps.choice import declare

    parser.add_argument("folder", type=Path, metavar="DIR", help="the study's folder")
    declare(parser)


def run(args: argparse.Namespace) -> None:
    """Cancel, and say whom."""
    from sweeps.choice import chosen
    from sweeps.ledger import ENDED, HELD, Ledger

    ledger = Ledger(args.folder)
    cells = [cell for cell in ledger.cells(chosen(ledger, args)) if cell.state not in ENDED]
    for cell in cells:
        ledger.cancel(cell.run)
        print(cell.run.run)
    running = sum(cell.state in HELD for cell in cells)
    text = f", {running} of them running: they save and stop at their next heartbeat" if running else ""
    print(f"{len(cells)} cancelled{text}", file=sys.stderr)
