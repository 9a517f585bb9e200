"""Fit scaling laws to a study's scores, or to the paper's: parameters with intervals, the form that forward validation chooses, the
frontier, isoFLOPs, block multipliers, what sampling steps buy, and a methods box.

A number that the data do not determine is not printed; the reason stands in its place. Gflops count one multiply-add as one flop.
"""

from __future__ import annotations

import argparse
import json


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("source", metavar="DIR|paper", help="a study's folder, or 'paper' for the published numbers")
    parser.add_argument("--where", metavar="EXPR", help="use these rows only, like \"protocol == '1a2b3c4d5e6f'\"")
    parser.add_argument("--block", help="block whose laws are fitted (default: adaln_zero, or the one with most cells)")
    parser.add_argument(
        "--of",
        choices=("scores", "training_loss"),
        default="scores",
        help="what is fitted: scores of samples, or the loss",
    )
    parser.add_argument(
        "--loss", choices=("huber", "squares"), default="huber", help="Huber on log residuals, or least squares"
    )
    parser.add_argument("--replicates", type=int, default=1000, help="bootstrap replicates (default: 1000)")
    parser.add_argument("--json", action="store_true", help="everything at full precision as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the conclusions to standard output."""
    from analysis.fits.conclusions import conclude
    from analysis.fits.summary import text
    from analysis.results import collect
    from dit.errors import UserError

    if args.replicates < 100:
        raise UserError(f"--replicates {args.replicates}: expected 100 or more, a 95 % interval needs them")
    study = collect(args.source, unscored=args.of == "training_loss").where(args.where)
    if args.of == "training_loss":
        from analysis.training_loss import as_scores

        study = as_scores(study)
    found = conclude(study, block=args.block, replicates=args.replicates, loss=args.loss)
    print(json.dumps(found.to_json(), indent=1, allow_nan=False) if args.json else text(found))
    return 0
