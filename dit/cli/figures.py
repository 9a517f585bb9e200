"""Draw a study's figures, or those of the published numbers, as PDF and PNG with a sidecar of the rows and code behind each.

A figure that the study does not carry is skipped with the reason. Gflops on an axis count one multiply-add as one flop.
With --verify nothing is drawn: every figure is held against its sidecar, the rows on record and the code; exit code 1 if any is stale.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dit.errors import UserError

if TYPE_CHECKING:
    from analysis.results import StudyResults

STALE = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("source", metavar="DIR|paper", help="a study's folder, or 'paper' for the published numbers")
    parser.add_argument("--out", type=Path, help="folder for the figures (default: DIR/figures, DIR/figures/talk)")
    parser.add_argument("--only", metavar="fig8,...", help="draw (or verify) these figures only")
    parser.add_argument("--where", metavar="EXPR", help="use these rows only, like \"block == 'adaln_zero'\"")
    parser.add_argument(
        "--by", metavar="FIELD", help="a figure by this field of the runs, and the others for each value"
    )
    parser.add_argument("--style", choices=("paper", "talk"), default="paper", help="for a page, or for a slide")
    parser.add_argument("--verify", action="store_true", help="name the figures that are stale, edited or missing")


def run(args: argparse.Namespace) -> int:
    """Draw; one line on standard output for each file's stem, one on standard error for each figure that was skipped."""
    from analysis.figures.registry import draw_all
    from analysis.results import collect, output_folder

    study = collect(args.source)
    out = args.out or output_folder(args.source, study) / "figures" / ("" if args.style == "paper" else args.style)
    only = None if args.only is None else [name.strip() for name in args.only.split(",")]
    if args.verify:
        return _verify(args, study, out, only)
    for outcome in draw_all(study, out, only, args.style, args.where, args.by):
        if outcome.skipped:
            print(f"{outcome.name} skipped: {outcome.skipped}", file=sys.stderr)
        else:
            print(*outcome.files, flush=True)
    return 0


def _verify(args: argparse.Namespace, study: StudyResults, folder: Path, only: list[str] | None) -> int:
    """Print a line for each figure: fresh ones on standard output, stale ones on standard error."""
    from analysis.figures.verification import verify

    if args.where is not None or args.by is not None:
        raise UserError(
            f"{'--by' if args.where is None else '--where'} does not go with --verify: each figure is verified as it was drawn"
        )
    stale = 0
    for verdict in verify(study, folder, only, args.style):
        if verdict.stale is not None:
            stale += 1
            print(f"{verdict.name} is stale: {verdict.stale}", file=sys.stderr)
        elif verdict.absent is None:
            print(f"{verdict.name} is up to date")
    if stale:
        print(f"{stale} stale in {folder}: draw them again with `dit figures {args.source}`", file=sys.stderr)
    return STALE if stale else 0
