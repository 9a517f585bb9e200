"""Check this machine, and a study's folder if one is given: versions, devices, wandb, storage, a test of its leases, clock and disk space.

A line each with ok, warn or fail, and what to do. Exit code 1 if something is broken.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("folder", type=Path, metavar="DIR", nargs="?", help="a study's folder, or where one shall be")
    parser.add_argument("--json", action="store_true", help="a list of findings on standard output and nothing else")


def run(args: argparse.Namespace) -> int:
    """Check; 1 if anything failed."""
    from sweeps.doctor import FAIL, examine

    findings = []
    for one in examine(args.folder):
        findings.append(one)
        if not args.json:
            print(f"{one.level:<4}  {one.what:<8}  {one.seen}" + (f"; {one.remedy}" if one.remedy else ""), flush=True)
    if args.json:
        print(json.dumps([dataclasses.asdict(one) for one in findings], indent=1))
    return int(any(one.level == FAIL for one in findings))
