"""Write a study as one HTML page that needs nothing else: summary, tables, charts, samples, fits, costs, failures, provenance.

Open it in any browser, also without network. Gflops count one multiply-add as one flop.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("source", metavar="DIR|paper", help="a study's folder, or 'paper' for the published numbers")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write it (default: DIR/report.html)")
    parser.add_argument(
        "--by", metavar="FIELD", help="a page of what this field of the runs does, and one for each value"
    )
    parser.add_argument("--where", metavar="EXPR", help="use these rows only, like \"block == 'adaln_zero'\"")


def run(args: argparse.Namespace) -> None:
    """Write the page and print its path."""
    from analysis.report.page import write_reports
    from analysis.results import collect, output_folder

    study = collect(args.source).where(args.where)
    print(*write_reports(study, args.out or output_folder(args.source, study) / "report.html", args.by), sep="\n")
