"""Work on a study: claim its cells one by one and run each to its end, until nothing is left to claim.

Any number of workers, on any hosts that see the study's folder, may work at once: each cell is one worker's alone, held by a lease with
a heartbeat. A cell whose worker died is taken over, and goes on from its last checkpoint. SIGTERM saves the state and ends.

Exit codes: 0 done (nothing is left for this worker), 3 some cells failed, 75 stopped with the state saved, 2 bad input.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dit.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    from sweeps.arguments import declare, declare_trust

    parser.add_argument(
        "--study", type=Path, required=True, metavar="DIR", help="the study's folder, as `dit sweep` made it"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--cell", metavar="ID", help="only this cell: its run's name")
    which.add_argument("--cells", choices=("-",), help="the cells named on standard input, a line each, as they come")
    parser.add_argument("--wait", action="store_true", help="stay until every cell has ended, to take over from others")
    parser.add_argument(
        "--lease",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds of silence that lose a worker its cell (default: 60)",
    )
    parser.add_argument(
        "--hang",
        type=float,
        default=3600.0,
        metavar="S",
        help="give a cell up that does not move so long (default: 3600)",
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="be one worker with the other hosts of this TPU slice or job: all start the same command",
    )
    parser.add_argument("--cpus", default="", help="processors to keep to, such as 0,1 (default: all)")
    parser.add_argument(
        "--events", action="store_true", help="tell what happens as JSON, a line each, on standard output"
    )
    declare(parser)
    declare_trust(parser)


def run(args: argparse.Namespace) -> int:
    """Work; the exit code."""
    from sweeps import arguments
    from sweeps.gang import Alone, join
    from sweeps.ledger import Ledger
    from sweeps.study import run_kept
    from sweeps.worker import Options, Worker, serve, use_processors

    for name in ("lease", "hang"):
        if not getattr(args, name) > 0:
            raise UserError(f"--{name} {getattr(args, name)}: expected a positive number of seconds")
    use_processors(_numbers(args.cpus) if args.cpus else set())
    run_kept(args.study)
    ledger = Ledger(args.study)
    if args.cell:
        ledger.run(args.cell)
    gang = join() if args.distributed else Alone()
    report, close = (
        (lambda event: None, lambda: None) if not gang.leads else _events() if args.events else _progress(ledger)
    )
    options = Options(args.lease, args.hang, args.wait)
    worker = Worker(ledger, arguments.of(args, args.study), options, report, gang)
    with worker.stopping_on_signals():
        try:
            return serve(worker) if args.cells else worker.work(args.cell)
        finally:
            close()


def _numbers(text: str) -> set[int]:
    try:
        return {int(number) for number in text.split(",")}
    except ValueError as error:
        raise UserError(f"--cpus {text}: expected processor numbers with commas between, such as 0,1") from error


def _events() -> tuple[Callable[[dict[str, Any]], None], Callable[[], None]]:
    """Events on what standard output was; what libraries print must not mix with them and goes to standard error."""
    stream = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def report(event: dict[str, Any]) -> None:
        stream.write(json.dumps(event) + "\n")

    return report, stream.close


def _progress(ledger: Any) -> tuple[Callable[[dict[str, Any]], None], Callable[[], None]]:
    from sweeps.ledger import ENDED
    from sweeps.progress import Progress

    cells = ledger.cells()
    left = [cell.run for cell in cells if cell.state not in ENDED]
    progress = Progress(left, len(cells) - len(left), sys.stderr)

    def report(event: dict[str, Any]) -> None:
        progress({"worker": 0, **event})

    return report, progress.close
