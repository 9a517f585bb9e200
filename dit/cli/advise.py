"""What to train next: cells that cannot reach the frontier, and the run that narrows a forecast most per Gflop.

Candidates are the study's unfinished cells, sizes of its ladder that it lacks, second seeds and longer runs. Gflops are of training
(Gflops x batch x steps x 3), one multiply-add a flop; sampling for the scores is not counted.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("source", metavar="DIR|paper", help="a study's folder, or 'paper' for the published numbers")
    parser.add_argument("--where", metavar="EXPR", help="use these scores only, like \"protocol == '1a2b3c4d5e6f'\"")
    parser.add_argument("--by", metavar="FIELD", help="advice for each value of this field of the runs")
    parser.add_argument(
        "--for", dest="target", metavar="CELL", help="whose forecast to narrow: XL, XL/2 or an expression"
    )
    parser.add_argument("--top", type=int, default=10, help="candidates to list (default: 10)")
    parser.add_argument(
        "--with-young-averages", action="store_true", help="use scores of averages that still hold the first weights"
    )
    parser.add_argument("--json", action="store_true", help="everything as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the advice to standard output."""
    from analysis.advise import advise
    from analysis.axes import axis_of
    from analysis.fits.summary import advice_text, titled
    from analysis.results import collect
    from dit.errors import UserError

    if args.top < 1:
        raise UserError(f"--top {args.top}: expected 1 or more")
    study = replace(collect(args.source), with_young_averages=args.with_young_averages).where(args.where)
    axis = axis_of(study, args.by)
    if axis is None:
        found = advise(study, args.target)
        print(json.dumps(found.to_json(), indent=1, allow_nan=False) if args.json else advice_text(found, args.top))
        return 0
    parts = {value: advise(part, args.target) for value, part in axis.split().items()}
    if args.json:
        values = [{"value": value, **one.to_json()} for value, one in parts.items()]
        print(json.dumps({"by": axis.field, "values": values}, indent=1, allow_nan=False))
    else:
        print("\n\n".join(titled(axis.name(value), advice_text(one, args.top)) for value, one in parts.items()))
    return 0
