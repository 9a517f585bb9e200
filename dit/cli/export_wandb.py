"""Replay a study into Weights & Biases.

    dit export wandb runs/demo                    writes runs/demo/wandb/offline-run-*, for `wandb sync`
    dit export wandb runs/demo --mode online --project dit

One wandb run for each run, under its hash and grouped by the study; training compute (Gflops, one multiply-add as one flop) is the x-axis
of the scores. A study is never read back from there unless `dit import-wandb` is asked to.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("study", metavar="DIR", help="a study's folder")
    add(
        "--mode",
        choices=("offline", "online"),
        default="offline",
        help="write files to sync later, or send (default offline)",
    )
    add("--project", default="dit-scaling", help="wandb project (default dit-scaling)")
    add("--entity", help="wandb team or user (default: your own)")
    add("--out", type=Path, metavar="DIR", help="folder in which wandb makes its own (default: the study's)")


def run(args: argparse.Namespace) -> int:
    """Replay; one line on standard output for each run."""
    from analysis.results import collect
    from analysis.wandb_replay import replay

    study = collect(args.study)
    count = 0
    for name in replay(study, args.mode, args.project, args.entity, args.out or Path(args.study)):
        print(name, flush=True)
        count += 1
    print(f"{count} run{'s' * (count != 1)} replayed into project {args.project}", file=sys.stderr)
    if args.mode == "offline":
        print(f"send them with `wandb sync {args.out or args.study}/wandb/offline-run-*`", file=sys.stderr)
    return 0
