"""Fit scaling laws to a study's scores, or to the paper's: parameters with intervals, the form that forward validation chooses, the
frontier, isoFLOPs, block multipliers, what sampling steps buy, and a methods box.

A number that the data do not determine is not printed; the reason stands in its place. Gflops count one multiply-add as one flop.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.fits.fit import LawFit
    from analysis.fits.observations import Observations


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "source", metavar="DIR|paper|TABLE", help="a study's folder, 'paper', or a table: a file in .csv or .parquet"
    )
    parser.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="FIELD=COLUMN",
        help="of a table: where params, images_seen, train_gflops, score or seed is",
    )
    parser.add_argument("--by", metavar="COLUMN", help="of a table: groups that have a law each")
    parser.add_argument(
        "--form", choices=("chinchilla",), help="E + A N^-a + B D^-b under the loss of Hoffmann et al., alone"
    )
    parser.add_argument("--where", metavar="EXPR", help="use these rows only, like \"protocol == '1a2b3c4d5e6f'\"")
    parser.add_argument("--block", help="block whose laws are fitted (default: adaln_zero, or the one with most cells)")
    parser.add_argument(
        "--of",
        choices=("scores", "training_loss"),
        default="scores",
        help="what is fitted: scores of samples, or the loss",
    )
    parser.add_argument(
        "--loss", choices=("squares", "huber"), default="squares", help="least squares, or Huber (delta 1e-3) of logs"
    )
    parser.add_argument("--replicates", type=int, default=1000, help="bootstrap replicates (default: 1000)")
    parser.add_argument(
        "--with-young-averages", action="store_true", help="use scores of averages that still hold the first weights"
    )
    parser.add_argument("--json", action="store_true", help="everything at full precision as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the conclusions to standard output."""
    from analysis.fits.conclusions import conclude
    from analysis.fits.summary import text
    from analysis.fits.table import is_table
    from analysis.results import collect
    from dit.errors import UserError

    if args.replicates < 100:
        raise UserError(f"--replicates {args.replicates}: expected 100 or more, a 95 % interval needs them")
    if is_table(args.source):
        return _fit_table(args)
    if args.map or args.by or args.form:
        raise UserError(f"--map, --by and --form are for a table (.csv, .parquet): {args.source} is a study")
    study = collect(args.source, unscored=args.of == "training_loss")
    study = replace(study, with_young_averages=args.with_young_averages).where(args.where)
    if args.of == "training_loss":
        from analysis.training_loss import as_scores

        study = as_scores(study)
    found = conclude(study, block=args.block, replicates=args.replicates, loss=args.loss)
    print(json.dumps(found.to_json(), indent=1, allow_nan=False) if args.json else text(found))
    return 0


def _fit_table(args: argparse.Namespace) -> int:
    """Laws of a table, one after the other for each group."""
    from analysis.fits.conclusions import conclude_from
    from analysis.fits.fit import Refusal
    from analysis.fits.summary import law_text, text
    from analysis.fits.table import observe_table
    from analysis.frames import pairs
    from dit.errors import UserError

    if args.of != "scores" or args.block:
        raise UserError("--of and --block are for a study: a table has its score in a column, and groups by --by")
    observations = observe_table(args.source, pairs(args.map, "--map"), args.by, args.where)
    found = []
    for name, ours in observations.by_block():
        if args.form:
            found.append(_chinchilla(ours, args.replicates))
        else:
            refused = Refusal("sampling", "a table has no sampling steps")
            found.append(conclude_from(ours, refused, block=name, replicates=args.replicates, loss=args.loss))
    if args.json:
        values = [one.to_json() for one in found]
        print(json.dumps(values if args.by else values[0], indent=1, allow_nan=False))
    else:
        print("\n\n".join(law_text(one) if args.form else text(one) for one in found))
    return 0


def _chinchilla(observations: Observations, replicates: int) -> LawFit:
    """L = E + A N^-a + B D^-b by the summed Huber loss of log residuals, delta 1e-3 (Hoffmann et al. arXiv:2203.15556, Sec. D.2)."""
    from analysis.fits.fit import NotIdentified, fit_law
    from dit.errors import UserError

    try:
        return fit_law(observations, "params+images", loss="huber", replicates=replicates)
    except NotIdentified as reason:
        raise UserError(f"--form chinchilla: {reason}") from reason
