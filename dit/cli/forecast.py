"""Freeze a forecast before a cell is trained, and score it afterwards.

`dit forecast DIR --for XL` writes DIR/forecasts/<date>-<target>-<hash>.json with intervals, the form that forward validation chose
and its error. It refuses a cell that has its score already unless told --retrospective. `dit forecast DIR --score` compares every
frozen forecast with what has been measured since, and finds out a file that was changed (exit code 2).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dit.errors import UserError

if TYPE_CHECKING:
    from analysis.results import StudyResults


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("source", metavar="DIR|paper", help="a study's folder, or 'paper' for the published numbers")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--for", dest="target", metavar="CELLS", help='a size (XL), a cell (XL/2) or an expression ("patch_size == 2")'
    )
    what.add_argument("--score", action="store_true", help="compare frozen forecasts with what was measured")
    parser.add_argument("--where", metavar="EXPR", help="use these scores only, like \"protocol == '1a2b3c4d5e6f'\"")
    parser.add_argument("--form", help="a form of `dit fit` instead of the one that forward validation chooses")
    parser.add_argument("--loss", choices=("squares", "huber"), default="squares", help="as in `dit fit`")
    parser.add_argument("--retrospective", action="store_true", help="allow cells that have their score, and say so")
    parser.add_argument("--force", action="store_true", help="print forecasts more than a decade past the data")
    parser.add_argument(
        "--with-young-averages", action="store_true", help="use scores of averages that still hold the first weights"
    )
    parser.add_argument("--out", type=Path, help="folder of forecasts (default: DIR/forecasts)")
    parser.add_argument("--json", action="store_true", help="JSON on standard output")


def run(args: argparse.Namespace) -> int:
    """Freeze or score."""
    from analysis.results import collect, output_folder

    study = replace(collect(args.source), with_young_averages=args.with_young_averages)
    folder = args.out or output_folder(args.source, study) / "forecasts"
    return _score(study, folder, args) if args.score else _freeze(study, folder, args)


def _freeze(study: StudyResults, folder: Path, args: argparse.Namespace) -> int:
    from analysis import forecast, tables
    from analysis.fits import summary

    made = forecast.freeze(
        study.where(args.where),
        args.target,
        retrospective=args.retrospective,
        form=args.form,
        loss=args.loss,
        force=args.force,
    )
    path = forecast.save(made, folder)
    if args.json:
        print(json.dumps(made.to_json(), indent=1, allow_nan=False))
    else:
        rows = summary.forecast_rows(made)
        print(tables.render(rows, list(rows[0])), end="")
        for law in made.laws:
            print(f"{law.block}: {law.equation}; {law.validation.reason}")
    print(f"frozen {path} sha256 {made.sha256}", file=sys.stderr)
    return 0


def _score(study: StudyResults, folder: Path, args: argparse.Namespace) -> int:
    from analysis import forecast, tables
    from analysis.fits import summary
    from analysis.fits.record import as_json

    scored = forecast.score_all(study, folder)
    if args.json:
        print(json.dumps(as_json(scored), indent=1, allow_nan=False))
    else:
        rows = summary.scored_rows(scored)
        if rows:
            print(tables.render(rows, list(rows[0])), end="")
        for one in scored:
            if one.pending:
                print(f"{one.path}: not yet measured: {', '.join(one.pending)}", file=sys.stderr)
    wrong = [one for one in scored if one.trouble]
    if wrong:
        raise UserError("; ".join(f"{one.path} is not to be trusted: {one.trouble}" for one in wrong))
    return 0
