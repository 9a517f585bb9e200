"""Look at every file of a study, name what is damaged, missing or foreign, and mend what can be.

    dit verify runs/demo
    dit verify runs/demo --repair

Records are held against their digests, logged rows against their chain, checkpoints against their manifests. Files of earlier versions
have no digest; they are counted, and cannot be vouched for. `--repair` moves what is damaged aside, removes what was half written, and
sets runs back to their last sound state: `dit sweep` or `dit worker` then trains or scores again what they lack.

Exit codes: 0 all is sound, or was mended; 1 something is damaged or missing; 2 bad input.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dit.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="the study's folder, or an archive of one")
    parser.add_argument("--repair", action="store_true", help="mend what is safe to mend, and tell what was done")
    parser.add_argument("--json", action="store_true", help="the findings as JSON, and nothing else")


def run(args: argparse.Namespace) -> int:
    """Verify, and repair if asked; 1 if anything stays damaged or missing."""
    from dit.store.archives import opened
    from dit.store.study import load_study
    from dit.store.verify import DAMAGED, MISSING, OLD, repair, verify

    if args.repair and not args.folder.is_dir():
        raise UserError(f"--repair {args.folder}: expected a study's folder, an archive is mended by its owner")
    folder = opened(args.folder)
    found = verify(folder)
    done = list(repair(found)) if args.repair else []
    if done:
        found = verify(folder)
    told = [{"file": str(one.path), "kind": one.kind, "said": one.said} for one in found]
    bad = [one for one in found if one.kind == DAMAGED or (one.kind == MISSING and not args.repair)]
    if args.json:
        print(json.dumps({"findings": told, "repaired": done}, indent=1))
        return 1 if bad else 0
    for line in done:
        print(f"repaired: {line}")
    for one in found:
        if one.kind != OLD:
            print(f"{one.kind}: {one.path}: {one.said}")
    if old := [one for one in found if one.kind == OLD]:
        print(f"{len(old)} files have {old[0].said}; nothing vouches for what they say")
    if any(one.path.name == "study.json" and one.kind == DAMAGED for one in found):
        print("nothing may be trusted: study.json, which says what the study asks for, is damaged")
        return 1
    runs = load_study(folder).runs
    worse = {run.run for run in runs for one in bad if run.run in one.path.parts}
    print(
        f"{len(runs) - len(worse)} of {len(runs)} runs may be trusted"
        + (": not " + ", ".join(sorted(worse)) if worse else "")
    )
    return 1 if bad else 0
