"""Take failed and cancelled cells up again: their failures are forgiven, and the next sweep or worker goes on from their last checkpoints.

Without --cell and --where, every failed or cancelled cell of the study.
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
    """Forgive, and say whom."""
    from sweeps.choice import chosen
    from sweeps.ledger import Ledger

    ledger = Ledger(args.folder)
    retried = [one.run for one in chosen(ledger, args) if ledger.retry(one)]
    for name in retried:
        print(name)
    print(f"{len(retried)} to be taken up again by the next `dit sweep` or `dit worker`", file=sys.stderr)
