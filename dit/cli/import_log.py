"""Read the text logs of DiT's released trainer and its descendants into a study's folder, which every other verb reads.

    dit import-log results/000-DiT-XL-2/log.txt --out runs/theirs
    dit import-log logs/ --out runs/theirs --patch-size 2 --pattern 'log-(?P<size>xl|l|b|s)-(?P<seed>\\d+)'

One log or a folder of them. Lines: "(step=0000100) Train Loss: 0.1234, Train Steps/Sec: 5.67". A log's cell is told by flags, else by the
pattern, else by a name like 000-DiT-XL-2; batch, rate and seed are the released trainer's unless told. docs/field.md has the rest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dit.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("source", type=Path, metavar="FILE|DIR", help="a log, or a folder of *.txt and *.log")
    add("--out", type=Path, required=True, metavar="DIR", help="the study's folder; must not be there yet")
    add("--study", metavar="NAME", help="name of the study (default: that of DIR)")
    add("--block", help="(default: adaln_zero)")
    add("--size", help="S, B, L or XL")
    add("--patch-size", type=int)
    add("--ladder", help="of the sizes (default: dit)")
    add("--dataset", help="(default: imagenet256)")
    add("--batch-size", type=int, help="images a step, over all devices (default: 256)")
    add("--learning-rate", type=float, help="(default: 1e-4)")
    add("--seed", type=int, help="(default: 0)")
    add("--pattern", metavar="REGEX", help="named groups in the files' names tell a cell: size, patch_size, seed, ...")


def run(args: argparse.Namespace) -> int:
    """Import; one line on standard output, remarks on standard error."""
    from analysis.log_import import GROUPS, read_logs
    from analysis.wandb_fields import Fields
    from analysis.wandb_import import import_runs

    if not args.source.exists():
        raise UserError(f"no file {args.source}: expected a text log of DiT's trainer, or a folder of them")
    logged = read_logs(args.source, args.pattern, {name: getattr(args, name) for name in GROUPS})
    study = import_runs(logged, Fields(), args.study or args.out.name, f"logs: {args.source.name}", args.out)
    print(f"{args.out}: {len(study.runs)} run{'s' * (len(study.runs) > 1)} of study {study.name}")
    return 0
