"""Run what is missing of a study and resume what was interrupted; `dit results` then shows its table.

Run it again at any time: finished cells are never run twice, a killed one goes on from its last checkpoint. Exit code 3: some failed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from dit.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("study", help="a study's name, or the path of a Python file with runs()")
    parser.add_argument("--out", type=Path, help="the study's folder (default: runs/<study>)")
    parser.add_argument("--where", help="only cells satisfying this, such as \"size == 'S' and patch_size == 2\"")
    parser.add_argument(
        "--workers", type=int, help="worker processes (default: one per processor; one with an accelerator)"
    )
    parser.add_argument("--retry-failed", action="store_true", help="run cells again that failed before")
    parser.add_argument(
        "--wandb", choices=("off", "offline", "online"), default="off", help="mirror runs in Weights & Biases"
    )
    parser.add_argument("--log-every", type=int, default=50, help="steps per logged row (default: 50)")
    parser.add_argument(
        "--checkpoint-every", type=int, default=10_000, help="steps per checkpoint, besides evaluations"
    )
    paths = parser.add_argument_group("for studies on latents")
    paths.add_argument("--data", default="", help="encoded images: the folder of `dit encode`, or its gs:// path")
    paths.add_argument("--vae", default="", help="autoencoder that decodes samples to be scored")
    paths.add_argument("--inception", default="", help="Inception weights (default: as `dit evaluate` finds them)")
    paths.add_argument(
        "--reference", default="", help="statistics of the real images: ADM's batch, or a file of `dit reference`"
    )


def run(args: argparse.Namespace) -> int:
    """Sweep; a count on standard error, then the exit code."""
    from dit.config import RunArguments
    from sweeps.study import declared, subset
    from sweeps.sweep import default_workers, sweep

    for name in ("workers", "log_every", "checkpoint_every"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected a positive whole number")
    study = declared(args.study)
    runs = subset(study, args.where)
    folder = args.out or Path("runs") / study.name
    paths = {name: getattr(args, name) for name in ("data", "vae", "inception", "reference")}
    arguments = RunArguments(
        log_every=args.log_every, checkpoint_every=args.checkpoint_every, wandb=args.wandb, **paths
    )
    _require_paths(runs, folder, arguments)

    def tell(message: str) -> None:
        print(message, file=sys.stderr)

    workers = args.workers or default_workers()
    outcome = sweep(study, runs, folder, arguments, workers, args.retry_failed, tell)
    failed = f", {outcome.failed} failed (see dit status {folder})" if outcome.failed else ""
    print(f"{outcome.done} of {outcome.cells} done{failed}", file=sys.stderr)
    return 3 if outcome.failed else 0


def _require_paths(runs: Any, folder: Path, arguments: Any) -> None:
    """Say at once, not cell by cell, what runs on latents lack."""
    from dit.store import RunStore

    left = [run for run in runs if run.data.is_latent and not RunStore(folder, run).is_done()]
    needed = ["data"] * bool(left) + ["vae", "reference"] * any(run.evaluations for run in left)
    missing = [f"--{name}" for name in needed if not getattr(arguments, name)]
    if missing:
        raise UserError(
            f"the study trains on latents of your own images: give {' and '.join(missing)} (see docs/imagenet.md)"
        )
