"""Run what is missing of a study and resume what was interrupted; `dit results` then shows its table.

Run it again at any time: finished cells are never run twice, a killed one goes on from its last checkpoint. Several sweeps, and `dit
worker` on other hosts, may share a folder: each cell is one worker's alone. SIGTERM, or Ctrl-C once, saves the cells and stops.

Exit codes: 0 done, 3 some failed, 75 stopped with the state saved.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from dit.design.config import RunArguments, RunConfig
from dit.design.topology import MeshShape, parse_mesh, require_batch
from dit.errors import UserError
from dit.store.study import RunStore, check_study_folder, require_growth, storage_errors


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    from sweeps import arguments, engines

    parser.add_argument("study", help="a study's name, or the path of a Python file with runs()")
    parser.add_argument("--out", type=Path, help="the study's folder (default: runs/<study>)")
    parser.add_argument("--where", help="only cells satisfying this, such as \"size == 'S' and patch_size == 2\"")
    parser.add_argument("--retry-failed", action="store_true", help="run cells again that failed before")
    parser.add_argument(
        "--detach", action="store_true", help="submit and return, to an engine that outlives this command"
    )
    parser.add_argument(
        "--declare", action="store_true", help="only make the study's folder: `dit worker` on any host runs the cells"
    )
    parser.add_argument(
        "--allow-shrink",
        action="store_true",
        help="go on where the folder has finished runs that the study has no more",
    )
    arguments.declare(parser)
    arguments.declare_trust(parser)
    engines.declare(parser)


def run(args: argparse.Namespace) -> int:
    """Sweep; a count on standard error, then the exit code."""
    with storage_errors(args.out or Path("runs")):
        return _sweep(args)


def _sweep(args: argparse.Namespace) -> int:
    from sweeps import arguments, engines
    from sweeps.study import declared, declared_resources, subset
    from sweeps.sweep import declare, sweep

    engines.check(args.engine, args)
    study = declared(args.study, check=True)
    runs, own_needs = subset(study, args.where), declared_resources(args.study)
    folder = args.out or Path("runs") / study.name
    check_study_folder(folder, study.name)
    if not args.allow_shrink:
        require_growth(folder, study)
    chosen = arguments.of(args, folder)
    left = [run for run in runs if not RunStore(folder, run).is_done()]
    _require_paths(left, chosen)
    _require_layout(left, chosen)
    if args.declare:
        declare(study, folder, chosen)
        print(f"declared: `dit worker --study {shlex.quote(str(folder))}` on any hosts runs it", file=sys.stderr)
        return 0
    detached = args.engine != "local"
    needs = {run.run: engines.resources(args.engine, args, run, own_needs) for run in runs}

    def tell(message: str) -> None:
        print(message, file=sys.stderr)

    outcome = sweep(
        study,
        runs,
        folder,
        chosen,
        lambda folder, listen: engines.make(args.engine, folder, args, listen),
        lambda run: needs[run.run],
        args.retry_failed,
        tell,
        args.detach,
    )
    if args.detach:
        print(f"submitted: `dit status {folder} --watch` follows it", file=sys.stderr)
    parts = [f"{outcome.done} of {outcome.cells} done"]
    parts += [f"{outcome.failed} failed (see dit status {folder})"] * bool(outcome.failed)
    parts += [f"{outcome.cancelled} cancelled (dit retry {folder} takes them up)"] * bool(outcome.cancelled)
    parts += [f"{outcome.elsewhere} with other workers"] * bool(outcome.elsewhere)
    after = "left: its cells go on, sweep again to follow" if detached else "stopped, and saved: sweep again to go on"
    parts += [after] * outcome.stopped
    print(", ".join(parts), file=sys.stderr)
    return 75 if outcome.stopped else 3 if outcome.failed else 0


def _require_paths(left: list[RunConfig], arguments: RunArguments) -> None:
    """Say at once, not cell by cell, what runs on latents lack."""
    on_latents = [run for run in left if run.data.is_latent]
    needed = ["data"] * bool(on_latents) + ["vae", "reference"] * any(run.evaluations for run in on_latents)
    missing = [f"--{name}" for name in needed if not getattr(arguments, name)]
    if missing:
        raise UserError(
            f"the study trains on latents of your own images: give {', '.join(missing)} (see docs/imagenet.md)"
        )


def _require_layout(left: list[RunConfig], arguments: RunArguments) -> None:
    """Say likewise which batch the mesh and the accumulation do not divide."""
    shape = parse_mesh(arguments.mesh) or MeshShape()
    for run in left:
        try:
            require_batch(run.batch_size, shape, arguments.accumulate)
        except UserError as error:
            raise UserError(f"{run.run}: {error}") from error
