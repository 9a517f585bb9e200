"""What loss and FID to expect of a cell at a training step, from public logs and tables, with a band and its sources.

    dit expect --block adaln_zero --size B --patch-size 2 --step 50000

Between published steps a line in log step; outside them the answer says that it is extrapolated, or that nothing is known. FID is of
50,000 samples without guidance, the loss that of DiT's own trainer. docs/field.md tells the rules and where the numbers are from.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from analysis.tables import FORMATS

    parser.add_argument("--block", default="adaln_zero", help="(default: adaln_zero)")
    parser.add_argument("--size", required=True, help="S, B, L or XL")
    parser.add_argument("--patch-size", type=int, required=True)
    parser.add_argument("--step", type=int, required=True, help="training steps, at batch 256")
    parser.add_argument("--image-size", type=int, default=256, help="pixels of ImageNet images (default: 256)")
    parser.add_argument("--format", choices=FORMATS, default="table", help="(default: table)")
    parser.add_argument("--json", action="store_const", const="json", dest="format", help="same as --format json")


def run(args: argparse.Namespace) -> int:
    """Print a row for each score to standard output."""
    from analysis.expect import expect
    from analysis.tables import render

    rows = [asdict(one) for one in expect(args.block, args.size, args.patch_size, args.step, args.image_size)]
    print(render(rows, list(rows[0]), args.format), end="")
    return 0
