"""Read runs logged in Weights & Biases into a study's folder, which every other verb reads.

    dit import-wandb my-team/dit --out runs/imported
    dit import-wandb exported/ --out runs/imported --map fid=eval/fid50k --set block=adaln_zero num_samples=50000

Reads ENTITY/PROJECT through wandb's API (whole histories), files and folders exported from it (histories as CSV, JSON or JSON lines, a
chart's CSV, a project's table), or what it wrote beside a run (wandb/offline-run-*). Usual names are found by themselves (loss, train/loss,
eval/fid, DiT-XL/2, cfg.model.depth, ...); docs/results.md lists them.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from dit.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("source", nargs="+", metavar="ENTITY/PROJECT|FILE", help="a project, or exported files and folders")
    add("--out", type=Path, required=True, metavar="DIR", help="the study's folder; must not be there yet")
    add("--study", metavar="NAME", help="name of the study (default: that of DIR)")
    add("--map", nargs="+", action="extend", default=[], metavar="FIELD=COLUMN", help="where a field is logged")
    add("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help="a field that was not logged")
    add("--only", metavar="REGEX", help="runs whose name or id this is found in")


def run(args: argparse.Namespace) -> int:
    """Import; one line on standard output."""
    from analysis.frames import pairs
    from analysis.wandb_import import Fields, import_runs
    from analysis.wandb_sources import read_files, read_project

    fields = Fields(pairs(args.map, "--map"), pairs(args.set, "--set"))
    is_project = len(args.source) == 1 and not Path(args.source[0]).exists()
    if (
        is_project
        and re.fullmatch(r"[\w.-]+/[\w.-]+", args.source[0])
        and not args.source[0].endswith((".csv", ".json", ".jsonl"))
    ):
        logged = read_project(args.source[0])
    else:
        logged = read_files([Path(one) for one in args.source])
    if args.only is not None:
        try:
            logged = [one for one in logged if re.search(args.only, one.name) or re.search(args.only, one.id)]
        except re.error as error:
            raise UserError(f"--only {args.only!r} is no regular expression: {error}") from error
        if not logged:
            raise UserError(f"--only {args.only!r}: no run's name or id has it")
    study = import_runs(logged, fields, args.study or args.out.name, f"wandb: {', '.join(args.source)}", args.out)
    print(f"{args.out}: {len(study.runs)} run{'s' * (len(study.runs) > 1)} of study {study.name}")
    return 0
