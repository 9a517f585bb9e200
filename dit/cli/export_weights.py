"""Write a checkpoint's averaged weights under the official names, as .safetensors.

    dit export runs/paper/runs/adaln_zero-XL-2-s0-0123456789ab --out xl-2.safetensors

Of DiT the release holds adaLN-Zero models only, so only those have official names; a U-Net has ADM's or latent diffusion's. Importing
the file again gives the same weights, bit for bit.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="folder of a run, or one that `dit import` wrote"
    )
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file; must not be there yet")
    parser.add_argument("--key", help="which part of a weights file to take (default: its averaged weights)")
    parser.add_argument("--step", type=int, help="which of the run's checkpoints (default: the newest)")


def run(args: argparse.Namespace) -> None:
    """Export; one line on standard output."""
    from dit.train.restore import Declared, export, open_checkpoint, refuse_existing

    refuse_existing(args.out)
    loaded = open_checkpoint(args.checkpoint, args.step, Declared(key=args.key))
    export(loaded, args.out)
    step = "" if loaded.step is None else f" at step {loaded.step:,}"
    print(f"{args.out}: {loaded.source}{step}" + (f" ({loaded.note})" if loaded.note else ""))
