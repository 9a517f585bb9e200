"""Draw the paper's figures from a study, or from the published numbers, as PDF and PNG with a sidecar of the rows behind each.

A figure that the study does not carry is skipped with the reason. Gflops on an axis count one multiply-add as one flop.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("source", metavar="DIR|paper", help="a study's folder, or 'paper' for the published numbers")
    parser.add_argument("--out", type=Path, help="folder for the figures (default: DIR/figures)")
    parser.add_argument("--only", metavar="fig8,...", help="draw these figures only")
    parser.add_argument("--where", metavar="EXPR", help="use these rows only, like \"block == 'adaln_zero'\"")


def run(args: argparse.Namespace) -> int:
    """Draw; one line on standard output for each file's stem, one on standard error for each figure that was skipped."""
    from analysis.figures.registry import draw_all
    from analysis.results import collect

    study = collect(args.source).where(args.where)
    folder = study.folder or Path("runs") / args.source
    only = None if args.only is None else [name.strip() for name in args.only.split(",")]
    for outcome in draw_all(study, args.out or folder / "figures", only):
        if outcome.skipped:
            print(f"{outcome.name} skipped: {outcome.skipped}", file=sys.stderr)
        else:
            print(*outcome.files, flush=True)
    return 0
